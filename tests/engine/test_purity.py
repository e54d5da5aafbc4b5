"""The promise: what a request yields depends on nothing but itself."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from model.checkpoint.files import Checkpoint
from model.params import SamplingParams
from service.worker.core import EngineCore
from tests.engine.conftest import BLOCK, LONG_BLOCK, Driver, Logprobs, MakeCore, Request, random_request
from tests.engine.kernels import ENGINES, NATIVE

NUM_GOLDEN = 208


@pytest.fixture(scope="module")
def golden_requests() -> list[Request]:
    rng = random.Random(1623)
    return [random_request(rng, longest=2 * BLOCK) for _ in range(NUM_GOLDEN)]


def alone(core_driver: Driver, requests: list[Request]) -> list[tuple[list[int], Logprobs]]:
    """Each request by itself, in row 0."""
    golden = []
    for number, request in enumerate(requests):
        core_driver.submit(number, request)
        core_driver.run()
        assert core_driver.rows.get(number, 0) == 0
        golden.append((core_driver.tokens[number], core_driver.logprobs[number]))
    return golden


@pytest.mark.parametrize("engine", NATIVE or ENGINES)
def test_zero_differing_bytes_under_load(make_core: MakeCore, golden_requests: list[Request], engine: str) -> None:
    """208 requests alone, then with neighbours that come, go and are cancelled: every batch size, every row, 0 differences."""
    rows = 16
    golden = alone(Driver(make_core(engine, rows=rows)), golden_requests)
    driver = Driver(make_core(engine, rows=rows, threads=2))
    rng = random.Random(engine)
    plan = [(number % NUM_GOLDEN, crowd) for crowd in range(1, 2 * rows, 3) for number in range(crowd * 20, crowd * 20 + 2 * crowd)]
    plan += [(number, rows) for number in range(NUM_GOLDEN)]
    wanted: dict[int, int] = {}  # the driver's number → the golden request's
    noise = len(plan)
    while len(wanted) < len(plan) or driver.core.has_work:
        while len(wanted) < len(plan) and len(driver.core.scheduler.sequences) < plan[len(wanted)][1]:
            if rng.random() < 0.2:  # a neighbour that will be cancelled
                driver.submit(noise, random_request(rng))
                noise += 1
            number = len(wanted)
            wanted[number] = plan[number][0]
            driver.submit(number, golden_requests[wanted[number]])
        driver.step()
        for number in list(driver.core.scheduler.sequences):
            if number >= len(plan) and rng.random() < 0.3:
                driver.core.cancel(number)
    differing = [n for n, g in wanted.items() if (driver.tokens[n], driver.logprobs[n]) != golden[g]]
    assert differing == []
    assert set(wanted.values()) == set(range(NUM_GOLDEN))
    assert set(driver.rows.values()) == set(range(rows))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_batch_size(make_core: MakeCore, engine: str) -> None:
    """1 to 19 rows at once: on the native kernels every size of register tile, on torch a tile and a part of one."""
    rows = 19
    core = make_core(engine, rows=rows)
    requests = [([1, 2, number % 12], SamplingParams(max_new_tokens=6, seed=number)) for number in range(rows)]
    golden = [tokens for tokens, _ in alone(Driver(core), requests)]
    for size in range(1, rows + 1):
        driver = Driver(core)
        for number in range(size):
            driver.submit(number, requests[number])
        driver.run()
        assert size in driver.batch_sizes
        assert [driver.tokens[n] for n in range(size)] == golden[:size]


@pytest.mark.parametrize("engine", ENGINES)
def test_rebuilding_at_any_token_changes_nothing(make_core: MakeCore, engine: str) -> None:
    """What a crash does to a stream: at every index, a new engine goes on from the tokens so far."""
    rng = random.Random(99)
    core = make_core(engine)
    for prompt_length, stride in ((0, 16), (5, 16), (BLOCK + 4, 16), (3, 1), (BLOCK, 7)):
        prompt = [rng.randrange(12) for _ in range(prompt_length)]
        length = BLOCK + 24
        params = SamplingParams(
            max_new_tokens=length, seed=rng.randrange(2**40), frequency_penalty=0.3, repetition_penalty=1.1, num_logprobs=1, stride=stride
        )
        driver = Driver(core)
        driver.submit(0, (prompt, params))
        driver.run()
        whole, logprobs = driver.tokens[0], driver.logprobs[0]
        for cut in range(1, length, 11 if engine in ("torch", "reference") else 3):
            again = Driver(core)
            again.submit(0, (prompt, params), whole[:cut])
            again.run()
            assert again.tokens[0] == whole, f"rebuilt after {cut} tokens"
            assert again.logprobs[0] == logprobs[cut:]


@pytest.mark.parametrize("engine", ENGINES)
def test_crashes_under_load_with_long_prompts(
    make_core: MakeCore, long_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Prompts of several chunks are half encoded while neighbours decode, and everybody is rebuilt beside everybody else.

    A decode step must not touch the rows of a tile that only wait: once it wrote their first column.
    """
    rng = random.Random(7)
    core = make_core(engine, stride=80, of=long_checkpoint)
    requests: list[Request] = []
    for number in range(9):
        prompt = [rng.randrange(12) for _ in range(rng.choice([1, 60, 64, 65, 130, LONG_BLOCK, 2 * LONG_BLOCK]))]
        params = SamplingParams(max_new_tokens=rng.choice([5, 30, 60]), seed=number, num_logprobs=0, presence_penalty=0.2)
        requests.append((prompt, params))
    golden = alone(Driver(core), requests)
    core = make_core(engine, stride=80, of=long_checkpoint)
    monkeypatch.setattr("service.worker.scheduler.MAX_PREFILL_TOKENS", 64)
    driver = Driver(core)
    for number, request in enumerate(requests):
        driver.submit(number, request)
    steps = 0
    while driver.core.has_work:
        driver.step()
        steps += 1
        if steps % 13 == 0:
            core = EngineCore(core.runner, block_size=LONG_BLOCK, stride=80, start_token=core.start_token)
            logprobs = driver.logprobs
            survivors = {n: tokens for n, tokens in driver.tokens.items() if n not in driver.finished}
            driver.core = core
            for number, tokens in survivors.items():
                driver.submit(number, requests[number], tokens)
                driver.logprobs[number] = logprobs[number]
    assert steps > 13
    assert [n for n in range(len(requests)) if driver.tokens[n] != golden[n][0]] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_neutral_values_equal_omission(make_core: MakeCore, engine: str) -> None:
    core = make_core(engine)
    plain = SamplingParams(max_new_tokens=50, seed=12)
    neutral = replace(plain, top_k=12, top_p=1.0, min_p=0.0, repetition_penalty=1.0, logit_bias=((2, 0.0),), temperature=1.0)
    results = []
    for params in (plain, neutral, replace(plain, top_k=10**6), replace(plain, num_logprobs=3)):
        driver = Driver(core)
        driver.submit(0, ([1, 2], params))
        driver.run()
        results.append(driver.tokens[0])
    assert all(tokens == results[0] for tokens in results)
