"""Clients that leave, and clients that do not read: nobody else notices, and nothing is left of them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from tests.e2e.wire import Exchange, Read, fetch, probe, run, stream, text_of, together
from tests.support.server import Server
from tests.support.wait import until

ENDINGS = ("folio_request_success_total", "folio_requests_cancelled_total", "folio_request_refused_total")


def endings(server: Server) -> float:
    """How many requests have ended, in whatever way."""
    return sum(value for name, value in server.metrics().items() if name.startswith(ENDINGS))


async def leave(server: Server, body: dict[str, Any], characters: int, graceful: bool) -> None:
    """Read so much, then go."""
    async with Exchange(server, body) as exchange:
        await exchange.until(characters)
        if not graceful:
            exchange.reset()


def test_half_the_streams_are_killed_and_the_others_are_byte_exact(server: Server) -> None:
    """LESSONS 3, 6: one client's leaving stopped, or crashed, the answers of all."""
    rng = random.Random(3)
    rounds, width = 6, 32
    stays = [{"prompt": "abc"[: n % 4], "max_new_tokens": 400, "seed": n} for n in range(width // 2)]
    goes = [{"prompt": "j", "max_new_tokens": 1_000_000, "seed": n} for n in range(width // 2)]
    golden = [server.text(**each) for each in stays]
    before, worker, restarts = endings(server), server.worker(), server.metrics()["folio_engine_restarts_total"]

    async def body() -> None:
        for _ in range(rounds):
            killed = [leave(server, each, rng.randrange(1500), rng.random() < 0.3) for each in goes]
            works: list[Any] = [stream(server, each) for each in stays] + killed
            order = rng.sample(range(width), width)
            results = await together(*(works[i] for i in order))
            texts = {i: result.text for i, result in zip(order, results, strict=True) if isinstance(result, Read)}
            assert [texts[i] for i in range(width // 2)] == golden
            await until(lambda: server.busy == 0)

    run(body())
    assert server.worker() == worker, "the worker was replaced"
    metrics = server.metrics()
    assert metrics["folio_engine_restarts_total"] == restarts
    assert metrics["folio_num_requests_running"] == metrics["folio_num_requests_waiting"] == 0
    assert endings(server) - before == rounds * width, "the books do not balance"


def test_leaving_frees_the_row_and_stops_the_generation(server: Server) -> None:
    """LESSONS 1, 2, 4, 5: streaming and not, running and queued."""

    async def leaves(streamed: bool) -> None:
        body = {"prompt": "a", "max_new_tokens": 1_000_000, "stream": streamed}
        exchanges = [Exchange(server, body) for _ in range(20)]  # four of them wait
        for exchange in exchanges:
            await exchange.send()
        await until(lambda: server.busy == 20 and server.metrics()["folio_num_requests_running"] == 16)
        for exchange in exchanges:
            exchange.reset()
        await until(lambda: server.busy == 0)
        steps = server.metrics()["folio_engine_steps_total"]
        assert await text_of(server, {"prompt": "a", "max_new_tokens": 1}) != ""
        assert server.metrics()["folio_engine_steps_total"] <= steps + 3, "somebody's text was still being generated"

    before = server.metrics()
    run(leaves(True))
    run(leaves(False))
    after = server.metrics()
    cancelled = {where: f'folio_requests_cancelled_total{{where="{where}"}}' for where in ("running", "queued")}
    assert sum(after[name] - before[name] for name in cancelled.values()) == 40
    assert after[cancelled["queued"]] - before[cancelled["queued"]] >= 4


def test_a_reader_that_stops_gives_its_row_up_and_goes_on_exactly(server: Server) -> None:
    """LESSONS 31: a slow reader filled the memory, or slowed its neighbours. Here it is suspended until it reads again."""
    slow = {"prompt": "abc", "max_new_tokens": 12_000, "seed": 31}
    neighbour = {"prompt": "j", "max_new_tokens": 300, "seed": 1}
    golden, golden_neighbour = server.text(**slow), server.text(**neighbour)

    async def body() -> None:
        # log-probabilities make every token some 500 bytes, so that buffers of sockets fill up soon
        exchanges = [Exchange(server, {**slow, "logprobs": True, "top_logprobs": 9}) for _ in range(16)]
        for exchange in exchanges:
            await exchange.send(receive_buffer=4096)
            await exchange.head()
        await until(lambda: server.busy == 0)
        sixteen = await together(*(text_of(server, neighbour) for _ in range(16)))
        assert set(sixteen) == {golden_neighbour}
        slowest = exchanges.pop()
        for exchange in exchanges:  # some never come back
            exchange.reset()
        await slowest.until(50)  # a little is read: it goes on for a little
        await until(lambda: server.busy == 0)
        assert not slowest.read.is_over
        read = await slowest.finish()
        assert read.text == golden
        assert read.end is not None
        assert len(read.end["logprobs"]) == 12_000
        await slowest.close()

    run(body())


def test_probes_answer_at_full_load(server: Server) -> None:
    """LESSONS 36, 37: probes that time out when the server is busy. Here all answer while every row is taken and as many wait."""

    async def body() -> None:
        endless = {"prompt": "a", "max_new_tokens": 1_000_000, "stream": False}
        neighbours = [asyncio.ensure_future(fetch(server, endless)) for _ in range(32)]
        await until(lambda: server.busy == 32)
        for path in ("/healthz", "/readyz") * 20:
            assert await probe(server, path) == 200
        assert not any(each.done() for each in neighbours)
        for each in neighbours:
            each.cancel()
        await asyncio.gather(*neighbours, return_exceptions=True)
        await until(lambda: server.busy == 0)

    run(body())
