"""``Last-Event-ID``: a cut stream goes on byte for byte, at any token, with nothing kept by the server, also by its successor."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

from tests.e2e.conftest import Start
from tests.e2e.wire import Exchange, Read, run, stream, together
from tests.support.checkpoints import Catalogue
from tests.support.server import Server, code_of
from tests.support.wait import until

BODY = {"prompt": "abc", "max_new_tokens": 60, "seed": 14}


async def resume(server: Server, body: dict[str, Any], last: str) -> Read:
    return await stream(server, body, {"Last-Event-ID": last})


def at(read: Read, index: int) -> str:
    """The id that the event of a token has, or would have if it stood alone."""
    return f"{read.ids[0].rpartition('.')[0]}.{index}"


def test_cut_at_every_index(server: Server) -> None:
    """LESSONS 14: a change of network lost the answer."""

    async def one(whole: Read, body: dict[str, Any], index: int) -> None:
        rest = await resume(server, body, at(whole, index))
        assert whole.text[:index] + rest.text == whole.text
        assert rest.end is not None
        assert whole.end is not None
        assert {**rest.end, "timings": 0, "id": 0} == {**whole.end, "timings": 0, "id": 0}
        assert [int(id.rpartition(".")[2]) > index for id in rest.ids] == [True] * len(rest.ids)
        assert {id.split(".")[-3:-1] == whole.ids[0].split(".")[-3:-1] for id in rest.ids} <= {True}

    async def body() -> None:
        for body in (BODY, {**BODY, "context": "sliding", "stop": ["zz"], "temperature": 1.5}):
            whole = await stream(server, body)
            assert len(whole.text) == 60
            await together(*(one(whole, body, index) for index in range(61)))

    run(body())


def test_cut_where_a_real_connection_breaks(server: Server) -> None:
    """Again and again, until the text is there."""
    rng = random.Random(2)
    body = {"prompt": "ab", "max_new_tokens": 6_000, "seed": 8}
    golden = server.text(**body)

    async def one() -> int:
        text, last, cuts = "", None, 0
        while True:
            async with Exchange(server, body, headers={"Last-Event-ID": last} if last else None) as exchange:
                assert exchange.status == 200
                read = await exchange.until(rng.randrange(1, 3_000))
                text += read.text
                if read.end is not None:
                    assert text == read.end["text"] == golden
                    return cuts
                exchange.reset()
                cuts, last = cuts + 1, read.ids[-1]

    async def work() -> None:
        assert sum(await together(*(one() for _ in range(6)))) > 6

    run(work())


def test_what_cannot_be_resumed(server: Server) -> None:
    async def body() -> None:
        whole = await stream(server, BODY)

        async def refused(body: dict[str, Any], last: str) -> tuple[int, str]:
            async with Exchange(server, body, headers={"Last-Event-ID": last}) as exchange:
                return exchange.status, (await exchange.json())["error"]["code"]

        for change in ({"prompt": "abd"}, {"seed": 15}, {"temperature": 0.5}, {"max_new_tokens": 61}, {"stop": ["a"]}, {"echo": True}):
            assert await refused({**BODY, **change}, at(whole, 30)) == (409, "resume_mismatch"), change
        for last in ("x", at(whole, 61), at(whole, -1), at(whole, 30) + "0" * 20, ""):
            assert await refused(BODY, last) == (422, "invalid_request"), last
        assert await refused({name: BODY[name] for name in ("prompt", "max_new_tokens")}, at(whole, 30)) == (422, "invalid_request")
        wrong = whole.ids[0].split(".")
        wrong[-3] = "0" * 12
        assert await refused(BODY, ".".join(wrong)) == (410, "checkpoint_gone")
        done = await resume(server, BODY, at(whole, 60))
        assert (done.text, done.end is not None) == ("", True)

    run(body())


def test_after_the_server_was_killed_and_started_again(start: Start) -> None:
    """``kill -9`` of the whole service in the midst of 24 streams: its successor says the rest, byte for byte."""
    first = start()
    bodies = [{"prompt": "abc"[: n % 4], "max_new_tokens": 8_000, "seed": n, "stop": ["abcabcabcj"]} for n in range(24)]
    worker = first.worker()
    reads: list[Read] = []

    async def cut(body: dict[str, Any]) -> None:
        exchange = Exchange(first, body)
        await exchange.send()
        try:
            await exchange.head()
            async for read in exchange.events():
                if len(reads) < len(bodies) and read not in reads and len(read.text) > 200:
                    reads.append(read)
        except (EOFError, ConnectionError):
            pass
        await exchange.close()
        assert not exchange.read.is_over
        body["read"] = exchange.read

    async def kill() -> None:
        await until(lambda: len(reads) >= 12)
        first.process.send_signal(signal.SIGKILL)

    async def body() -> None:
        await together(kill(), *map(cut, bodies))

    run(body())
    assert first.wait() == -signal.SIGKILL
    second = start()
    assert worker not in first.group(), "the worker has outlived its service"

    async def go_on(body: dict[str, Any]) -> int:
        read: Read = body.pop("read")
        rest = await stream(second, body, {"Last-Event-ID": read.ids[-1]} if read.ids else None)
        assert rest.end is not None
        assert read.text + rest.text == rest.end["text"]
        return len(read.text) > 0

    async def after() -> None:
        assert sum(await together(*map(go_on, bodies))) >= 12

    run(after())


def test_gone_with_its_checkpoint(start: Start, catalogue: Catalogue) -> None:
    server = start()

    async def begin() -> Read:
        async with Exchange(server, {**BODY, "max_new_tokens": 1_000_000}) as exchange:
            return await exchange.until(10)

    async def again(last: str) -> tuple[int, str]:
        async with Exchange(server, {**BODY, "max_new_tokens": 1_000_000}, headers={"Last-Event-ID": last}) as exchange:
            return exchange.status, (await exchange.json())["error"]["code"] if exchange.status != 200 else ""

    last = asyncio.run(begin()).ids[-1]
    assert asyncio.run(again(last)) == (200, "")
    assert server.promote(catalogue["b"]).status_code == 200
    assert server.promote(catalogue["b"]).status_code == 200  # nothing of "a" is loaded any more
    assert asyncio.run(again(last)) == (410, "checkpoint_gone")
    answer = server.post(prompt="a", checkpoint=catalogue["a"])
    assert (answer.status_code, code_of(answer)) == (410, "checkpoint_gone")
    assert server.promote(catalogue["a"]).status_code == 200
    assert asyncio.run(again(last)) == (200, "")
