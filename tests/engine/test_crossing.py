"""A stream that begins on one engine goes on with another: no token is a different one, no reader notices."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import replace

import msgspec

from model.exact.generate import generate
from model.exact.network import ExactModel
from service.engine.engine import EngineClient
from service.engine.interface import Chunk, EngineOptions
from tests.engine.conftest import Driver, MakeCore, random_request
from tests.engine.engines import current, read, request, run, running, until, worker_pid
from tests.engine.kernels import ENGINES, NATIVE


def test_every_few_steps_another_engine(make_core: MakeCore, oracle: ExactModel) -> None:
    """Every request is rebuilt on every kind of engine, in the middle of its text and beside others."""
    rng = random.Random(11)
    requests = [random_request(rng, longest=60) for _ in range(24)]
    requests = [(prompt, replace(params, stride=params.stride or 16)) for prompt, params in requests]
    cores = [make_core(engine, rows=6) for engine in ENGINES]
    driver, moves, steps = Driver(cores[0]), 0, 0
    for number, each in enumerate(requests):
        driver.submit(number, each)
    while driver.core.has_work:
        driver.step()
        steps += 1
        if steps % 3 == 0:
            for number in driver.tokens.keys() - driver.finished:
                driver.core.cancel(number)
            moves += 1
            survivors = {number: driver.tokens[number] for number in driver.tokens.keys() - driver.finished}
            driver.core = cores[moves % len(cores)]
            for number, tokens in sorted(survivors.items()):
                driver.submit(number, requests[number], tokens)
    assert moves > 2 * len(cores)
    for number, (prompt, params) in enumerate(requests):
        assert driver.tokens[number] == list(generate(oracle, prompt, params, start=0))


async def killed_in_the_middle(engine: EngineClient, kernels: str, cpu: str) -> str:
    """The text of a stream whose worker is killed after its first words, and followed by one that computes otherwise."""
    chunks: list[Chunk] = []
    reading = asyncio.ensure_future(read(engine.submit(request(5, new=3000)), chunks))
    await until(lambda: chunks or reading.done())
    supervisor, before = current(engine), worker_pid(engine)
    supervisor.start_message = msgspec.structs.replace(supervisor.start_message, kernels=kernels, cpu=cpu)
    supervisor.deaths = 0
    assert before is not None
    os.kill(before, signal.SIGKILL)
    text, _ = await reading
    await until(lambda: supervisor.worker is not None and supervisor.worker.process.pid != before and supervisor.state == "running")
    assert supervisor.checkpoint is not None
    assert supervisor.checkpoint.kernels == (kernels if cpu == "auto" else f"{kernels}-{cpu}")
    return text


def test_a_worker_that_is_killed_is_followed_by_one_of_another_kind(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            expected, _ = await read(engine.submit(request(5, new=3000)))
            for kernels, cpu in [*(("native", cpu) for cpu in NATIVE), ("torch", "auto")]:
                assert await killed_in_the_middle(engine, kernels, cpu) == expected

    run(body())
