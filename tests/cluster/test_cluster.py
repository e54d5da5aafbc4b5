"""Two replicas behind Ray's own proxy: the bytes of one server, whatever dies or is replaced. One Ray for all tests; the last ends it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.client import AsyncFolio, Stream
from tests.cluster.cluster import Cluster
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server
from tests.support.wait import wait_for

pytest.importorskip("ray", reason="needs Ray: pip install 'folio[ray]'")

LONG = [{"prompt": "abc", "max_new_tokens": 40_000, "seed": seed} for seed in range(16)]
SHORT = [{"prompt": "ab", "max_new_tokens": 2_000, "seed": seed} for seed in range(16)]
STALL_S = 4.0
"""The engine needs a second for the text that nobody reads."""
ENDLESS = {"prompt": "a", "max_new_tokens": 1_000_000, "seed": 1}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, list[str], list[str]]]:
    """The cluster, and what one ordinary server says to the same requests."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("cluster") / "a", 0)
    cluster = Cluster(checkpoint)
    try:
        server = Server(checkpoint)
        texts = [[server.text(**body) for body in bodies] for bodies in (LONG, SHORT)]
        server.close()
        cluster.wait_for(cluster.deployed)
        yield cluster, texts[0], texts[1]
    finally:
        cluster.close()


@pytest.fixture
def cluster(golden: tuple[Cluster, list[str], list[str]]) -> Cluster:
    return golden[0]


@pytest.fixture
def long(golden: tuple[Cluster, list[str], list[str]]) -> list[str]:
    return golden[1]


@pytest.fixture
def short(golden: tuple[Cluster, list[str], list[str]]) -> list[str]:
    return golden[2]


class Reader:
    """Reads one text with our client."""

    def __init__(self, cluster: Cluster, body: dict[str, Any]) -> None:
        self.cluster, self.body, self.text = cluster, body, ""

    async def read(self) -> str:
        async with AsyncFolio(self.cluster.url) as folio:
            async for piece in folio.stream(**self.body):
                self.text += piece
        return self.text


async def begun(readers: list[Reader]) -> list[asyncio.Task[str]]:
    """All of them, once each has some of its text and none has all of it."""
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    async with asyncio.timeout(60):
        while not all(reader.text for reader in readers):
            await asyncio.sleep(0.005)
    assert not any(task.done() for task in tasks)
    return tasks


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What our client went on after."""
    seen: list[Exception] = []
    retry = Stream.retry

    def noting(self: Any, error: Exception) -> Any:
        seen.append(error)
        return retry(self, error)

    monkeypatch.setattr(Stream, "retry", noting)
    return seen


def test_streams_through_the_proxy(cluster: Cluster, long: list[str], cuts: list[Exception]) -> None:
    async def work() -> list[str]:
        return await asyncio.gather(*(Reader(cluster, body).read() for body in LONG))

    assert asyncio.run(work()) == long
    assert not cuts
    assert cluster.is_whole()


def test_the_contract_comes_through(cluster: Cluster, short: list[str]) -> None:
    """Status, headers and bodies are the application's own."""
    with httpx.Client(base_url=cluster.url, trust_env=False, timeout=60) as http:
        answer = http.post("/generate", json=SHORT[0] | {"stream": False})
        assert (answer.status_code, answer.json()["text"], answer.headers["x-seed"]) == (200, short[0], "0")
        wrong = http.post("/generate", json={"prompt": "a", "temprature": 1})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "unknown_field")
        assert http.put("/generate").headers["allow"] == "GET, HEAD, POST, QUERY"
        assert http.get("/readyz").status_code == 200


def test_too_many_are_refused_by_the_application(cluster: Cluster) -> None:
    """Ray's own queue holds 5 requests and refuses in plain text. Two replicas of 16 rows and 16 places take 64 here, and one more
    for each text that is suspended because nobody reads it."""
    answered: list[tuple[int, str]] = []

    async def one(http: httpx.AsyncClient) -> None:
        async with http.stream("POST", "/generate", json=ENDLESS) as answer:
            if answer.status_code == 200:
                answered.append((200, ""))
                await all_answered.wait()
            else:
                assert int(answer.headers["retry-after"]) >= 1
                answered.append((answer.status_code, json.loads(await answer.aread())["error"]["code"]))

    async def work() -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=cluster.url, trust_env=False, timeout=60, limits=limits) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(100):
                group.create_task(one(http))
            async with asyncio.timeout(60):
                while len(answered) < 100:
                    await asyncio.sleep(0.02)
            all_answered.set()

    all_answered = asyncio.Event()
    asyncio.run(work())
    counts = Counter(answered)
    assert set(counts) == {(200, ""), (429, "queue_full")}
    assert 64 <= counts[200, ""] < 100


def test_a_reader_that_takes_nothing_is_suspended_and_one_that_leaves_is_cancelled(cluster: Cluster) -> None:
    """Between two threads Ray kept all of the 60 MB that nobody had taken; the application never learned that its reader was slow."""

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port, limit=4096)
        body = json.dumps({"prompt": "abc", "max_new_tokens": 47_000, "logprobs": True, "top_logprobs": 10, "seed": 1})
        head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        assert b"200" in await reader.readline()
        await asyncio.sleep(STALL_S)
        assert '"completion_tokens": 47000' not in cluster.logged()
        writer.transport.abort()

    asyncio.run(work())
    cluster.wait_for(lambda: '"cancelled": "running", "completion_tokens"' in cluster.logged())


def test_a_killed_replica_under_sixteen_streams(cluster: Cluster, long: list[str], cuts: list[Exception]) -> None:
    """Only its own streams are cut, all of them end byte for byte on the other one, and another one comes in its place."""

    async def work() -> list[str]:
        tasks = await begun([Reader(cluster, body) for body in LONG])
        os.kill(min(before), signal.SIGKILL)
        return await asyncio.gather(*tasks)

    before = cluster.replicas()
    assert len(before) == 2
    assert asyncio.run(work()) == long
    assert 1 <= len(cuts) < 16 * 3, cuts
    cluster.wait_for(cluster.is_whole)
    assert cluster.replicas() - before


def test_redeployed_under_load(cluster: Cluster, long: list[str], short: list[str], cuts: list[Exception]) -> None:
    """SIGHUP replaces both replicas, each new one before an old one goes. The requests meanwhile come from a client that never tries
    again: none fails.
    """

    async def load(http: httpx.AsyncClient, number: int) -> None:
        while not over.is_set():
            answer = await http.post("/generate", json=SHORT[number] | {"stream": False})
            assert answer.status_code == 200, answer.text
            assert answer.json()["text"] == short[number]
            answered.append(number)

    async def work() -> list[str]:
        running = await begun([Reader(cluster, body) for body in LONG[:4]])
        async with httpx.AsyncClient(base_url=cluster.url, trust_env=False, timeout=60) as http:
            loads = [asyncio.create_task(load(http, number)) for number in range(8)]
            cluster.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(cluster.wait_for, replaced)
            over.set()
            await asyncio.gather(*loads)
        return await asyncio.gather(*running)

    def replaced() -> bool:
        routed.append(cluster.routed())
        return cluster.is_whole() and not cluster.replicas() & before

    cluster.wait_for(cluster.is_whole)
    cluster.wait_for(lambda: cluster.routed() == 2)
    over, answered, routed, before = asyncio.Event(), list[int](), list[int | None](), cluster.replicas()
    assert asyncio.run(work()) == long[:4]
    assert not cuts, "a replica went before its streams had ended"
    assert {2, 3} >= set(routed) - {None}, "an old replica went before the new one was there"
    assert len(answered) > 16
    cluster.wait_for(lambda: cluster.deployed() == 2)


def test_sigterm_lets_the_streams_finish(cluster: Cluster, long: list[str], cuts: list[Exception]) -> None:
    """``serve run`` does so for SIGINT only. Nothing is left behind."""

    async def work() -> list[str]:
        tasks = await begun([Reader(cluster, body) for body in LONG[:8]])
        ending = asyncio.create_task(asyncio.to_thread(cluster.end))
        texts = await asyncio.gather(*tasks)
        assert await ending == 0, cluster.logged()
        return texts

    assert asyncio.run(work()) == long[:8]
    assert not cuts
    wait_for(lambda: not cluster.processes(), lambda: f"left: {cluster.processes()}", pause_s=0.05)
