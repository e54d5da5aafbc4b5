"""Every engine against the reference, with windows that move and requests that come and go: equal token for token."""

from __future__ import annotations

import random

import pytest

from model.exact.generate import generate
from model.exact.network import ExactModel
from model.params import SamplingParams
from tests.engine.conftest import Driver, MakeCore, Request, random_request
from tests.engine.kernels import NATIVE

NUM_REQUESTS = 160


def naive(oracle: ExactModel, request: Request, default_stride: int) -> list[int]:
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
def expected(oracle: ExactModel, requests: list[Request]) -> list[list[int]]:
    return [naive(oracle, request, 16) for request in requests]


@pytest.mark.parametrize(
    ("engine", "threads"), [*((engine, threads) for engine in NATIVE for threads in (1, 2)), ("torch", 1), ("reference", 1)]
)
def test_engine_equals_the_reference(
    make_core: MakeCore, requests: list[Request], expected: list[list[int]], engine: str, threads: int
) -> None:
    """Random arrivals, lengths and cancellations; windows of every stride are crossed."""
    driver = Driver(make_core(engine, rows=8, threads=threads))
    rng = random.Random(engine + str(threads))
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
