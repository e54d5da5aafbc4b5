"""A thousand requests that somebody has broken: no 500, nothing that stays, and an answer only to what was asked.

Seeded, so that a failure comes back: ``FUZZ_SEED=7 FUZZ_CASES=100000 python -m pytest tests/service/test_fuzz.py`` tries others.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from typing import Any

import pytest

from tests.service.fakes import FakeEngine
from tests.service.running import Running, request
from tests.service.slices import LoopWatch
from tests.support.wait import LIMIT_S, wait_for

SEED = int(os.environ.get("FUZZ_SEED", "20261"))
CASES = int(os.environ.get("FUZZ_CASES", "1000"))
AT_ONCE = 64
FREEZE_S = 0.1
BODY: dict[str, Any] = {"prompt": "ROMEO:", "max_new_tokens": 20, "seed": 1}
DATA = json.dumps(BODY).encode()
CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (DATA[:9], DATA[9:30], DATA[30:]))
HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"

CORPUS = [
    request(BODY),
    request({**BODY, "stream": False}, extra="Authorization: Bearer the-key\r\nX-Request-Id: a.b-c\r\n"),
    request({"prompt": ["R", "O"], "n": 2, "max_tokens": 5, "logprobs": 2}, "/v1/completions"),
    request({"prompt": "R", "stream": True, "stream_options": {"include_usage": True}}, "/v1/completions", version="1.0"),
    request({"checkpoint": "sha256:0"}, "/admin/promote"),
    b"POST /generate HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\nX-Trailer: a\r\n\r\n" % (HEAD, CHUNKS),
    request(BODY, extra="Expect: 100-continue\r\n"),
    request(BODY, extra="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"),
    request(BODY, extra="Last-Event-ID: a.0123456789ab.fedcba9876543210.3\r\nAccept: application/json, text/event-stream;q=0.1\r\n"),
    b"GET /v1/models/x?a=%20&b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nOrigin: null\r\n\r\n",
    b"GET http://localhost/playground/index.html HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-5\r\nIf-None-Match: *\r\n\r\n",
    b"HEAD /metrics HTTP/1.1\r\nHost: [::1]:80\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
]
TOKENS = [
    *(b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\0", b"\xff", b" ", b"\t", b":", b";", b"%00", b"%2f", b"/../", b"?", b"#", b'"', b"{", b"]"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n"),
    *(b"Host: b\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n"),
    *(b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"CONNECT ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n"),
    *(b"\\ud800", b"1e400", b"NaN", b"null", b"true", b"[" * 2000, b"9" * 5000, b"a" * 20_000, b"X: a\r\n" * 400),
]


def mutated(rng: random.Random) -> bytes:
    """One of the corpus, or several behind each other, with one to eight places broken."""
    data = bytearray(b"".join(rng.choices(CORPUS, k=rng.choice((1, 1, 1, 2, 3)))))
    for _ in range(rng.randint(1, 8)):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        to = min(to, at + rng.choice((1, 4, 64)))
        match rng.randrange(7):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:to]
            case 2:
                data[at:at] = data[at:to] * rng.choice((1, 2, 50))
            case 3:
                data[at:at] = rng.choice(TOKENS)
            case 4:
                data[at:to] = rng.choice(TOKENS)
            case 5:
                data[at:to] = rng.randbytes(to - at)
            case _:
                other = rng.choice(CORPUS)
                data[at:] = other[rng.randrange(len(other)) :]
    return bytes(data)


async def send(server: Running, data: bytes, rng: random.Random) -> bytes:
    """What comes back until the server ends the connection; the bytes go in up to four parts."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
        for first, last in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(data[first:last])
            await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def check(data: bytes, answer: bytes) -> None:
    """Statuses of ours, and none within another's body."""
    if answer:
        assert re.match(rb"HTTP/1\.1 [1-5]\d\d ", answer), (data, answer[:200])
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) [A-Za-z -]+\r\n", answer)]
    assert not [status for status in statuses if status == 500], (data, answer)
    assert len([status for status in statuses if status != 100]) <= 3 + data.count(b"HTTP/"), (data, statuses)


async def run(server: Running) -> None:
    rng = random.Random(SEED)
    free = asyncio.Semaphore(AT_ONCE)

    async def one(data: bytes, seed: int) -> None:
        async with free:
            check(data, await send(server, data, random.Random(seed)))

    async with asyncio.TaskGroup() as group:
        for case in range(CASES):
            group.create_task(one(mutated(rng), case))


@pytest.mark.parametrize("keys", [None, "the-key"])
def test_broken_requests(keys: str | None) -> None:
    server = Running(FakeEngine(), api_keys=keys, request_timeout_s=0.5, idle_timeout_s=1)
    try:
        before = server.tasks()
        with LoopWatch(server.loop) as watch:
            asyncio.run(run(server))
        assert server.metric("folio_request_refused_total", code="internal_error") == 0
        assert watch.slowest_s < FREEZE_S
        wait_for(lambda: not server.engine.streams and not server.server.server_state.connections)
        wait_for(lambda: server.tasks() <= before)
        headers = {"Authorization": f"Bearer {keys}"}
        assert server.post(**BODY, stream=False, headers=headers).status_code == 200
    finally:
        server.stop()
