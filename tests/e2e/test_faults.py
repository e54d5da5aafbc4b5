"""The worker dies, or hangs, in the midst of streams: readiness tells, liveness does not, and no byte changes."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.wire import probe, run, stream, text_of, together
from tests.support.server import Server, is_alive
from tests.support.wait import until

BODIES: list[dict[str, Any]] = [{"prompt": "abc"[: n % 4], "max_new_tokens": 2500, "seed": n, "stop": ["jihgfedc"]} for n in range(24)]


class Probes:
    """Asks both probes all the time and keeps what they said, each status once for as long as it lasted."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.ready: list[int] = []
        self.alive: set[int] = set()

    async def watch(self) -> None:
        while True:
            for path in ("/readyz", "/healthz"):
                status = await probe(self.server, path)
                if path == "/healthz":
                    self.alive.add(status)
                elif self.ready[-1:] != [status]:
                    self.ready.append(status)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced_and_its_streams_go_on(start: Start, number: signal.Signals) -> None:
    """LESSONS 35, 36: health was 200 while completions hung; here ready → 503 → 200, alive all the time, and every text is right."""
    server = start()
    probes = Probes(server)

    async def body() -> None:
        golden = await together(*(text_of(server, each) for each in BODIES))
        watching = asyncio.ensure_future(probes.watch())
        await until(lambda: probes.ready == [200])
        tokens = server.metrics()["folio_generation_tokens_total"]
        streams = asyncio.ensure_future(together(*(stream(server, each) for each in BODIES)))
        await until(lambda: server.metrics()["folio_generation_tokens_total"] > tokens + 500)
        old = server.worker()
        os.kill(old, number)
        await until(lambda: 503 in probes.ready)
        late = asyncio.ensure_future(text_of(server, BODIES[0]))  # comes while there is no worker, and waits
        await until(lambda: server.metrics()["folio_engine_restarts_total"] == 1)
        reads = await streams
        assert [read.text for read in reads] == golden
        assert all(read.end is not None for read in reads)
        assert await late == golden[0]
        await until(lambda: probes.ready[-1] == 200)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert not is_alive(old)
        assert server.worker() != old

    run(body())
    assert probes.ready == [200, 503, 200]
    assert probes.alive == {200}
    assert server.busy == 0
    assert server.end() == 0
    assert server.group() == []
