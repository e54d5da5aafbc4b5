"""Keys beside each other: whoever asks for little is not held up by whoever asks for all."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from model.params import SamplingParams
from service.engine.errors import QueueFull
from service.engine.interface import EngineOptions
from service.worker.core import EngineCore
from service.worker.fair_queue import MAX_COST, QUANTUM, FairQueue, cost_of
from service.worker.messages import Submit
from service.worker.sequence import Sequence
from tests.engine.conftest import BLOCK, Driver, MakeCore, random_request
from tests.engine.engines import request, run, running
from tests.engine.kernels import ENGINES
from tests.engine.test_scheduler import make


def waiting(number: int, key: str, new: int = 100, prompt: int = 4) -> Sequence:
    params = SamplingParams(max_new_tokens=new)
    return Sequence(number, [1] * prompt, params, 32, 64, [1] * prompt, prompt, order=number, key=key)


def submit(core: EngineCore, number: int, key: str, new: int = 400) -> None:
    core.submit(Submit(number, number, [1] * 4, [], SamplingParams(max_new_tokens=new), key))


# The queue


def test_one_key_is_first_come_first_served() -> None:
    queue = FairQueue()
    for number in (3, 1, 2, 0):
        queue.push(waiting(number, "a", new=10_000_000))
    assert len(queue) == 4
    assert [queue.pop().id for _ in range(4)] == [0, 1, 2, 3]
    assert not queue
    assert not (queue.lines or queue.turns or queue.credit), "nothing is kept of a key without a line"


def test_keys_get_equal_tokens_whatever_they_ask_for() -> None:
    """256 texts of one key stood in front of everybody else's."""
    queue, number = FairQueue(), 0
    for key, texts, new in (("crowd", 256, 64), ("long", 40, 4000), ("one", 1, 500), ("short", 300, 8)):
        for _ in range(texts):
            queue.push(waiting(number, key, new))
            number += 1
    served: Counter[str] = Counter()
    left: Counter[str] = Counter(key for key in queue.lines for _ in queue.lines[key])
    while all(left[key] for key in ("crowd", "long", "short")):
        sequence = queue.pop()
        left[sequence.key] -= 1
        served[sequence.key] += sequence.num_prompt + sequence.num_remaining
        assert max(served[key] for key in ("crowd", "short")) - min(served[key] for key in ("crowd", "short")) <= 2 * QUANTUM
    assert served["one"] == 504
    assert abs(served["long"] - served["crowd"]) <= 4004 + QUANTUM


def test_what_has_begun_has_paid_and_the_longest_text_is_found_soon() -> None:
    queue = FairQueue()
    begun = waiting(0, "a", new=100_000)
    begun.tokens += [1] * 10
    queue.push(begun)
    queue.push(waiting(1, "b", new=2**31 - 1))
    assert queue.pop() is begun
    assert queue.pop().id == 1
    for number in range(2):
        queue.push(waiting(number, str(number), new=2**31 - 1))
    assert {queue.pop().key, queue.pop().key} == {"0", "1"}
    assert MAX_COST // QUANTUM <= 64, "turns that are looked for at most"


def test_what_is_taken_out_leaves_nothing() -> None:
    queue = FairQueue()
    sequences = [waiting(number, "ab"[number % 2]) for number in range(6)]
    for sequence in sequences:
        queue.push(sequence)
    for sequence in sequences[:5]:
        queue.remove(sequence)
    assert queue.pop() is sequences[5]
    assert not (queue.lines or queue.turns or queue.credit)


# Rows


def test_a_key_without_a_row_gets_one_at_once() -> None:
    """One body with 256 texts: another key got no token in 15 s."""
    core, _ = make(rows=4)
    for number in range(64):
        submit(core, number, "crowd")
    for _ in range(3):
        core.step()
    submit(core, 100, "other")
    submit(core, 101, "other")
    result = core.step()
    assert 100 in result.admitted
    assert 100 in {output.sequence for output in result.outputs}, "and its first token"
    before = {s.id: s.key for s in core.scheduler.running.values()}
    assert sorted(before.values()) == ["crowd", "crowd", "crowd", "other"]
    for _ in range(4):
        core.step()
    assert {s.id: s.key for s in core.scheduler.running.values()} == before, "nobody is sent to and fro"


def test_more_keys_than_rows_take_their_rows_as_they_become_free() -> None:
    core, _ = make(rows=2)
    for number in range(6):
        submit(core, number, str(number), new=30)
    order: list[int] = []
    while core.has_work:
        order += core.step().admitted
    assert order == [0, 1, 2, 3, 4, 5]


def test_what_a_request_gives_as_generated_is_not_what_it_has_paid_for() -> None:
    """Or whoever gave one token would never wait for a turn. A sequence that is rebuilt has paid."""
    params = SamplingParams(max_new_tokens=100)

    def cost(generated: int, given: int) -> int:
        tokens = [1] * (4 + generated)
        return cost_of(Sequence(1, [1] * 4, params, stride=8, block_size=16, tokens=tokens, num_prompt=4, num_given=given))

    assert (cost(0, 0), cost(30, 30), cost(31, 30)) == (104, 74, 0)


def test_turns_change_no_byte(make_core: MakeCore) -> None:
    """A sequence that gave its row up is rebuilt from its tokens."""
    rng = random.Random(14)
    requests = [random_request(rng) for _ in range(24)]
    requests = [(prompt, replace(params, max_new_tokens=rng.randint(BLOCK, 2 * BLOCK))) for prompt, params in requests]
    golden = Driver(make_core(ENGINES[0], rows=1))
    for number, each in enumerate(requests):
        golden.submit(number, each)
        golden.run()
    driver = Driver(make_core(ENGINES[0], rows=3))
    admitted: Counter[int] = Counter()
    for number, (prompt, params) in enumerate(requests):
        driver.tokens[number], driver.logprobs[number] = [], []
        driver.core.submit(Submit(number, number, prompt, [], params, "abc"[number // 8]))
        for _ in range(2):
            before = dict(driver.core.scheduler.running)
            driver.step()
            admitted.update(driver.core.scheduler.running.keys() - before.keys())
    driver.run()
    assert max(admitted.values()) > 1, "some gave their row up"
    assert (driver.tokens, driver.logprobs) == (golden.tokens, golden.logprobs)


def test_a_queue_that_one_key_has_filled_has_a_place_for_another(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(replace(options, max_batch=1, max_queue=2)) as engine:
            for seed in range(3):
                engine.submit(replace(request(seed, new=10_000), key="crowd"))
            with pytest.raises(QueueFull):
                engine.submit(replace(request(), key="crowd"))
            stream = engine.submit(replace(request(new=3), key="other"))
            with pytest.raises(QueueFull):
                engine.submit(replace(request(), key="other"))
            async with stream:
                assert [chunk async for chunk in stream]

    run(body())
