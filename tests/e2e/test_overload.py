"""Ten times more than fits: 200 or 429, nothing else, and what was taken is right."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.e2e.conftest import Start
from tests.e2e.wire import Exchange, run, text_of
from tests.support.wait import until

ROWS, QUEUE = 16, 16


def test_a_burst_of_ten_times_the_capacity(start: Start) -> None:
    """LESSONS 18, 29: queues without bounds, and refusals that look like empty successes. How soon, benchmarks/properties.py measures."""
    server = start("--max-queue", str(QUEUE))

    async def one(number: int) -> int:
        path = ("/generate", "/v1/completions")[number % 3 == 2]
        length = "max_new_tokens" if path == "/generate" else "max_tokens"
        body: dict[str, Any] = {"prompt": "abc", length: 2000, "seed": number % 10, "stream": number % 2 == 0}
        async with Exchange(server, body, path) as exchange:
            if exchange.status == 429:
                assert (await exchange.json())["error"]["code"] == "queue_full"
                assert 1 <= int(exchange.headers["retry-after"]) <= 60
            elif path == "/generate" and body["stream"]:
                read = await exchange.finish()
                assert read.error is None
                assert read.text == golden[number % 10]
            elif body["stream"]:
                data = await exchange.body()
                assert data.endswith(b"data: [DONE]\n\n")
            else:
                reply = await exchange.json()
                assert (reply["text"] if path == "/generate" else reply["choices"][0]["text"]) == golden[number % 10]
        return exchange.status

    golden: list[str] = []

    async def body() -> None:
        for seed in range(10):
            golden.append(await text_of(server, {"prompt": "abc", "max_new_tokens": 2000, "seed": seed}))
        statuses = await asyncio.gather(*(one(number) for number in range(10 * (ROWS + QUEUE))))
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= ROWS + QUEUE
        assert server.metrics()['folio_request_refused_total{code="queue_full"}'] == statuses.count(429)
        await until(lambda: server.busy == 0)
        assert await text_of(server, {"prompt": "abc", "max_new_tokens": 2000, "seed": 0}) == golden[0]

    run(body())


def test_retry_after_follows_the_measured_throughput(start: Start) -> None:
    """A queue that moves slowly says so. The estimate looks back on what has ended, in whatever way it ended."""
    server = start("--max-queue", "1", "--max-batch", "1")

    async def hold(number: int) -> None:
        endless = {"prompt": "a", "max_new_tokens": 1_000_000, "context": "sliding", "seed": number}  # minutes, on any machine
        async with Exchange(server, endless) as exchange:
            await exchange.finish()

    async def refused() -> int:
        async with Exchange(server, {"prompt": "a"}) as exchange:
            assert exchange.status == 429
            return int(exchange.headers["retry-after"])

    async def body() -> None:
        for seed in range(3):  # each ends by a stop, which counts as much as any other end
            await text_of(server, {"prompt": "a", "max_new_tokens": 5000, "stop": ["a", "b", "c"], "seed": seed})
        held = [asyncio.ensure_future(hold(number)) for number in range(2)]
        await until(lambda: server.busy == 2)
        assert await refused() >= 1
        while await refused() < 2:  # nothing ends any more: three ends in t seconds make t / 3 for the next
            await asyncio.sleep(0.05)
        for each in held:
            each.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await until(lambda: server.busy == 0)

    async def limited() -> None:
        async with asyncio.timeout(60):
            await body()

    run(limited())
