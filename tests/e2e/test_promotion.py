"""Hot promotion over HTTP: a text belongs to exactly one checkpoint, whatever is promoted while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.signature import new_private_key, public_key_text, sign
from tests.e2e.conftest import Start
from tests.e2e.wire import Exchange, Read, fetch, run, stream, text_of, together
from tests.support.checkpoints import Catalogue, make_checkpoint
from tests.support.server import ADMIN, Server, code_of, serve
from tests.support.wait import until, wait_for

BODIES: list[dict[str, Any]] = [
    {"prompt": "abc", "max_new_tokens": 120, "seed": 1},
    {"prompt": "", "max_new_tokens": 200, "seed": 2, "temperature": 0.7},
    {"prompt": "jjj" * 20, "max_new_tokens": 60, "temperature": 0},
    {"prompt": "de", "max_new_tokens": 30, "seed": 4, "context": "sliding"},
]
ENDLESS = {"prompt": "abc", "max_new_tokens": 1_000_000, "seed": 9, "context": "sliding"}
"""It takes minutes on any machine, since a sliding window is computed anew for each token."""


@pytest.fixture(scope="module")
def promoting(catalogue: Catalogue) -> Iterator[Server]:
    """A server of this module's own: what it serves changes all the time."""
    server = serve(catalogue)
    yield server
    assert server.end() == 0
    assert server.group() == []
    server.close()


@pytest.fixture
def server(promoting: Server, catalogue: Catalogue) -> Server:
    """It serves ``a``, and nothing else is loaded."""
    assert promoting.promote(catalogue["a"]).status_code == 200
    wait_until_alone(promoting)
    return promoting


def loaded(server: Server) -> list[str]:
    return [model["id"] for model in server.http.get("/v1/models").json()["data"] if model["id"] != "folio"]


def wait_until_alone(server: Server) -> None:
    """Until the checkpoint before is gone, and its worker."""
    wait_for(lambda: len(loaded(server)) == 1 == len(server.workers()))


def texts(server: Server) -> list[str]:
    return [server.text(**body) for body in BODIES]


def test_the_admin_key_is_needed(server: Server, catalogue: Catalogue) -> None:
    for path in ("/admin/promote", "/admin/rollback"):
        assert server.post(path, checkpoint=catalogue["b"]).status_code == 401
        assert server.post(path, {"Authorization": "Bearer the-Admin-key"}, checkpoint=catalogue["b"]).status_code == 401
    assert server.http.get("/admin/checkpoints").status_code == 401
    rows = server.http.get("/admin/checkpoints", headers=ADMIN).json()["checkpoints"]
    assert {row["name"]: (row["id"] == catalogue[row["name"]], row["current"]) for row in rows} == {
        "a": (True, True),
        "b": (True, False),
        "damaged": (True, False),
    }


def test_a_stream_ends_on_the_checkpoint_that_it_began_with(server: Server, catalogue: Catalogue) -> None:
    """LESSONS 51: streams that mix old and new weights. Then back: the same texts as before (23, 24)."""
    before = texts(server)
    read = Read()
    switched: list[int] = []
    """Characters that had been read when the other checkpoint was the current one."""

    async def read_beyond_the_switch(exchange: Exchange) -> Read:
        async for read in exchange.events():
            if switched and len(read.text) > switched[0] + 1000:
                break
        return exchange.read

    async def body() -> None:
        nonlocal read
        async with Exchange(server, ENDLESS) as exchange:
            await exchange.until(500)
            reader = asyncio.ensure_future(read_beyond_the_switch(exchange))
            answer = await asyncio.to_thread(server.promote, catalogue["b"])
            assert answer.json()["checkpoint"] == catalogue["b"]
            assert loaded(server) == [catalogue["b"], catalogue["a"]]
            switched.append(len(exchange.read.text))
            refused = server.post("/admin/promote", ADMIN, checkpoint=catalogue["a"])
            assert (refused.status_code, code_of(refused)) == (409, "promotion_in_progress")
            new = [await fetch(server, {**each, "stream": False}) for each in BODIES]
            assert {reply["checkpoint"] for reply in new} == {catalogue["b"]}
            assert [reply["text"] for reply in new] != before
            named = [await text_of(server, {**each, "checkpoint": catalogue["a"]}) for each in BODIES]
            assert named == before, "the old one can be asked for by name while it is loaded"
            read = await reader
            assert not read.is_over, "it went on after the promotion"
            assert exchange.headers["x-checkpoint"] == catalogue["a"]

    run(body())
    wait_until_alone(server)
    assert loaded(server) == [catalogue["b"]]
    answer = server.post("/admin/rollback", ADMIN)
    assert answer.json()["checkpoint"] == catalogue["a"]
    assert texts(server) == before
    assert server.text(**{**ENDLESS, "max_new_tokens": len(read.text)}) == read.text


def test_a_bad_checkpoint_changes_nothing(server: Server, catalogue: Catalogue) -> None:
    before, worker, current = texts(server), server.worker(), loaded(server)
    answer = server.promote(catalogue["damaged"])
    assert (answer.status_code, code_of(answer)) == (422, "checkpoint_refused")
    assert "damaged/model.safetensors" in answer.text
    assert str(catalogue.directory) not in answer.text, "where the server keeps its files is nobody's business"
    answer = server.promote("sha256:" + "0" * 64)
    assert (answer.status_code, code_of(answer)) == (404, "checkpoint_not_found")
    answer = server.promote("../a")
    assert (answer.status_code, code_of(answer)) == (404, "checkpoint_not_found")
    assert (texts(server), server.workers(), loaded(server)) == (before, [worker], current)


def test_promotions_back_to_back_under_load(server: Server, catalogue: Catalogue) -> None:
    """LESSONS 51, 23, 24: every text is the golden one of exactly one checkpoint, the one that it names; some clients leave."""
    golden: dict[str, list[str]] = {}
    for name in "ba":
        server.promote(catalogue[name])
        golden[catalogue[name]] = texts(server)
    assert golden[catalogue["a"]] != golden[catalogue["b"]]
    restarts = server.metrics()["folio_engine_restarts_total"]
    seen: dict[str, int] = dict.fromkeys(golden, 0)

    async def client(number: int) -> None:
        turn = number
        while not done:
            turn += 1
            index = turn % len(BODIES)
            if turn % 5 == 0:  # leaves, also in the midst of a promotion
                async with Exchange(server, ENDLESS) as exchange:
                    await exchange.until(turn % 300)
                    exchange.reset()
            elif turn % 2:
                read = await stream(server, BODIES[index])
                assert read.end is not None
                assert read.text == golden[read.end["checkpoint"]][index]
                seen[read.end["checkpoint"]] += 1
            else:
                reply = await fetch(server, {**BODIES[index], "stream": False})
                assert reply["text"] == golden[reply["checkpoint"]][index]
                seen[reply["checkpoint"]] += 1

    done = False

    async def promotions() -> int:
        nonlocal done
        count = 0
        try:
            while count < 6 or (min(seen.values()) == 0 and count < 40):
                answer = await asyncio.to_thread(server.promote, catalogue["ba"[count % 2]])
                assert answer.status_code == 200, answer.text
                count += 1
        finally:
            done = True
        return count

    async def body() -> None:
        *_, count = await together(*(client(number) for number in range(8)), promotions())
        assert count >= 6
        await until(lambda: server.busy == 0)

    run(body())
    assert min(seen.values()) > 0
    assert server.metrics()["folio_engine_restarts_total"] == restarts
    wait_until_alone(server)


def test_an_admin_who_leaves_during_a_promotion(server: Server, catalogue: Catalogue) -> None:
    """The promotion goes on, or does not; nothing is left half done."""
    before = texts(server)

    async def body() -> None:
        exchange = Exchange(server, {"checkpoint": catalogue["b"]}, "/admin/promote", ADMIN)
        await exchange.send()
        await until(lambda: len(server.workers()) == 2)
        exchange.reset()

    run(body())
    assert server.promote(catalogue["b"]).status_code == 200
    assert server.promote(catalogue["a"]).status_code == 200
    wait_until_alone(server)
    assert texts(server) == before


def test_sigterm_during_a_promotion(start: Start, catalogue: Catalogue) -> None:
    server = start("--grace-s", "0.2")

    async def body() -> None:
        exchange = Exchange(server, {"checkpoint": catalogue["b"]}, "/admin/promote", ADMIN)
        await exchange.send()
        await until(lambda: len(server.workers()) == 2)
        server.process.terminate()
        await asyncio.to_thread(server.wait)

    run(body())
    assert server.wait() == 0
    assert server.group() == []


def test_the_best_of_a_run_is_followed(catalogue: Catalogue, tmp_path: Path) -> None:
    """``FOLIO_WATCH``: ``best`` is a link that training swaps by rename. A damaged one is passed over."""
    best = tmp_path / "best"

    def point(name: str) -> None:
        (tmp_path / "next").symlink_to(catalogue.path(name))
        (tmp_path / "next").replace(best)

    server = serve(catalogue, variables={"FOLIO_WATCH": str(best)})

    def wait_for_log(words: str) -> None:
        wait_for(lambda: words in server.logged(), server.logged)

    try:
        golden = server.text(**BODIES[0])
        point("b")
        wait_for_log(f"promoted {catalogue['b']}")
        assert server.text(**BODIES[0]) != golden
        point("damaged")
        wait_for_log(f"not promoted: {catalogue['damaged']}")
        assert loaded(server) == [catalogue["b"]]
        point("a")
        wait_for_log(f"promoted {catalogue['a']}")
        assert server.text(**BODIES[0]) == golden
        assert server.end() == 0
        assert server.group() == []
    finally:
        server.close()


def test_only_signed_checkpoints_on_demand(catalogue: Catalogue, tmp_path: Path) -> None:
    """``--trusted-keys``: unsigned and wrongly signed ones neither start nor are promoted."""
    signed, unsigned = make_checkpoint(tmp_path / "signed", 0), make_checkpoint(tmp_path / "unsigned", 1)
    key = new_private_key(tmp_path / "key.pem")
    sign(signed, (signed / "manifest.json").read_bytes(), key)
    trusted = ("--trusted-keys", public_key_text(key))
    other = ("--trusted-keys", public_key_text(new_private_key(tmp_path / "other.pem")))
    for path, flags, words in (
        (unsigned, trusted, "manifest.sig is missing"),
        (signed, other, "not made by any of the 1 trusted keys"),
    ):
        server = Server(path, *flags, ready=False)
        assert server.wait() != 0
        assert words in server.logged()
        assert server.group() == []
        server.close()
    server = Server(signed, "--checkpoints", str(tmp_path), *trusted)
    try:
        assert server.text(**BODIES[0])
        ids = {row["name"]: row["id"] for row in server.http.get("/admin/checkpoints", headers=ADMIN).json()["checkpoints"]}
        answer = server.promote(ids["unsigned"])
        assert (answer.status_code, code_of(answer)) == (422, "checkpoint_refused")
        assert loaded(server) == [ids["signed"]]
    finally:
        server.close()
