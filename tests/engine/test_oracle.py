"""Every fast path against the naive sampler, in float64: equal token for token."""

from __future__ import annotations

import random

import pytest

from model.generate import generate
from model.gpt import GPT
from model.params import SamplingParams
from tests.engine.conftest import Driver, MakeCore, Request, random_request

NUM_REQUESTS = 240


def naive(oracle: GPT, request: Request, default_stride: int) -> list[int]:
    prompt, params = request
    if params.stride is None:
        params = SamplingParams(
            **{name: getattr(params, name) for name in SamplingParams.__slots__ if name != "stride"}, stride=default_stride
        )
    return list(generate(oracle, prompt, params, start=0))


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = random.Random(5)
    return [random_request(rng, longest=60) for _ in range(NUM_REQUESTS)]


@pytest.fixture(scope="module")
def expected(oracle: GPT, requests: list[Request]) -> list[list[int]]:
    return [naive(oracle, request, 16) for request in requests]


@pytest.mark.parametrize(("kernels", "threads"), [("native", 1), ("native", 2), ("torch", 1)])
def test_engine_equals_naive_sampler(
    make_core: MakeCore, requests: list[Request], expected: list[list[int]], kernels: str, threads: int
) -> None:
    """Random arrivals, lengths and cancellations; windows of every stride are crossed."""
    driver = Driver(make_core(kernels, "float64", rows=8, threads=threads))
    rng = random.Random(kernels + str(threads))
    cancelled = set()
    queue = list(enumerate(requests))
    while queue or driver.core.has_work:
        for _ in range(rng.choice([0, 1, 1, 2, 6])):
            if queue:
                driver.submit(*queue.pop(0))
        if driver.core.has_work:
            driver.step()
        alive = [n for n in driver.tokens if n not in driver.finished and n not in cancelled]
        if alive and rng.random() < 0.02:
            victim = rng.choice(alive)
            cancelled.add(victim)
            driver.core.cancel(victim)
    for number, tokens in driver.tokens.items():
        if number in cancelled:
            assert tokens == expected[number][: len(tokens)]
        else:
            assert tokens == expected[number]
    assert len(driver.finished) + len(cancelled) == NUM_REQUESTS
    assert len(cancelled) < NUM_REQUESTS / 4


def test_log_probabilities_are_those_of_the_model(make_core: MakeCore, oracle: GPT) -> None:
    import torch

    from model.generate import next_logits

    params = SamplingParams(max_new_tokens=40, seed=3, temperature=0.5, top_k=2, num_logprobs=4, stride=16)
    for kernels in ("native", "torch"):
        driver = Driver(make_core(kernels, "float64"))
        driver.submit(0, ([1, 2, 3], params))
        driver.run()
        tokens = [1, 2, 3]
        for token, (own, top) in zip(driver.tokens[0], driver.logprobs[0], strict=True):
            reference = next_logits(oracle, tokens, 16).log_softmax(-1)
            assert own == pytest.approx(float(reference[token]), abs=1e-6)
            values, ids = torch.topk(reference, 4)
            assert [i for i, _ in top] == ids.tolist()
            assert [p for _, p in top] == pytest.approx(values.tolist(), abs=1e-6)
            tokens.append(token)
