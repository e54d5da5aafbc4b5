"""How the service starts and ends: signals to the process or its whole group, running streams, nothing left behind."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.wire import Exchange, Read, run, together
from tests.support.checkpoints import Catalogue
from tests.support.server import Server
from tests.support.wait import until, wait_for

ENDLESS = 1_000_000


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_sigterm_with_sixty_four_streams(start: Start, group: bool) -> None:
    """LESSONS 38: SIGTERM dropped answers in flight. 8 of these never end, so that the grace does.

    The figure to reach is 35 s with a grace of 30; here the grace is 2.
    """
    server = start("--grace-s", "2")
    bodies = [{"prompt": "abc", "max_new_tokens": 300 if n % 8 else ENDLESS, "seed": n} for n in range(64)]
    golden = {n: server.text(**bodies[n]) for n in (1, 2, 3)}
    worker = server.worker()

    async def read(body: dict[str, Any]) -> Read:
        async with Exchange(server, body) as exchange:
            assert exchange.status == 200
            opened.append(exchange)
            return await exchange.finish()

    async def newcomer() -> tuple[int, str, int]:
        async with Exchange(server, {"prompt": "a"}) as exchange:
            return exchange.status, (await exchange.json())["error"]["code"], int(exchange.headers["retry-after"])

    async def leaves() -> None:
        """A client that goes while the server drains."""
        async with Exchange(server, {"prompt": "a", "max_new_tokens": ENDLESS}) as exchange:
            await exchange.until(200)
            await until(lambda: draining)
            exchange.reset()

    draining = False
    opened: list[Exchange] = []

    async def body() -> None:
        nonlocal draining
        reading = [asyncio.ensure_future(read(each)) for each in bodies]
        leaving = asyncio.ensure_future(leaves())
        await until(lambda: len(opened) == 64)
        server.send(signal.SIGTERM, group=group)
        await until(lambda: server.http.get("/readyz").status_code == 503)
        draining = True
        status, code, retry_after = await newcomer()
        assert (status, code) == (503, "shutting_down")
        assert retry_after >= 1
        server.send(signal.SIGTERM)  # a second one changes nothing
        assert server.http.get("/healthz").status_code == 200
        reads = await together(*reading)
        await leaving
        for number, each in enumerate(reads):
            if each.error is not None:
                assert each.error["retryable"] is True
                assert each.error["error"]["code"] == "shutting_down"
            else:
                assert each.end["finish_reason"] == "length"
                assert each.text == golden.get(number, each.text)
        assert [n for n in range(0, 64, 8) if reads[n].error is None] == [], "the endless ones end by an error"
        assert any(each.end is not None for each in reads)
        assert await asyncio.to_thread(server.wait) == 0

    run(body())
    assert server.group() == [], f"worker {worker} or another is left"


def test_start_and_end_again_and_again(start: Start) -> None:
    """LESSONS 39, 40: servers that hang on their way out. Each end is waited for by ``Server.wait``, so that a hang is a failure."""

    async def begin(server: Server) -> None:
        async with Exchange(server, {"prompt": "a", "max_new_tokens": ENDLESS}) as exchange:
            await exchange.until(50)
            await asyncio.to_thread(server.send, signal.SIGTERM)
            await exchange.finish()

    for traffic, number in ((False, signal.SIGTERM), (False, signal.SIGINT), (True, signal.SIGTERM)):
        server = start("--grace-s", "0.1")
        if traffic:
            run(begin(server))
            assert server.wait() == 0
        else:
            assert server.end(number) == 0
        assert server.group() == []


def test_sigterm_while_it_loads(catalogue: Catalogue) -> None:
    """Before it is ready there is nothing to drain."""
    server = Server(catalogue.path("a"), ready=False)
    try:
        wait_for(server.workers)
        assert server.end() == 0
        assert server.group() == []
    finally:
        server.close()


def test_a_second_interrupt_ends_at_once(start: Start) -> None:
    """In the midst of an endless stream and a long grace."""
    server = start("--grace-s", "600")

    async def body() -> None:
        async with Exchange(server, {"prompt": "a", "max_new_tokens": ENDLESS}) as exchange:
            await exchange.until(100)
            server.send(signal.SIGINT, group=True)
            await until(lambda: server.http.get("/readyz").status_code == 503)
            server.send(signal.SIGINT, group=True)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await exchange.finish()
        assert await asyncio.to_thread(server.wait) == 130

    run(body())
    assert server.group() == []
