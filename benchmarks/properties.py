"""The figures that a service is relied on for, measured on the real one: probes under load, rows freed, idle connections, overload.

python -m benchmarks.properties
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time

from benchmarks.load import Dialect, quantile, request
from benchmarks.serving import ROOT, free_port, get, peak_mb, wait_for
from benchmarks.soak import post, resident_mb

HOST = "127.0.0.1"


async def timed_get(port: int, path: str) -> float:
    """Seconds for one GET on a connection of its own."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    status = await reader.readline()
    assert b" 200 " in status, status
    await reader.read()
    writer.close()
    return time.perf_counter() - began


async def probes_under_load(port: int, streams: int = 64, probes: int = 300) -> dict[str, object]:
    """/healthz and /readyz beside full load."""
    load = [asyncio.create_task(request(HOST, port, Dialect(), 4000, seed, "ROMEO:")) for seed in range(streams)]
    await asyncio.sleep(0.5)
    times = []
    for number in range(probes):
        times.append(await timed_get(port, "/healthz" if number % 2 else "/readyz"))
        await asyncio.sleep(0.01)
    for task in load:
        task.cancel()
    await asyncio.gather(*load, return_exceptions=True)
    return {"p50_ms": quantile(sorted(times), 0.5), "p99_ms": quantile(sorted(times), 0.99)}


async def rows_freed(port: int, times: int = 60) -> dict[str, object]:
    """From a client's reset to no row in use, read off /info."""
    found = []
    for number in range(times):
        reader, writer = await asyncio.open_connection(HOST, port)
        body = json.dumps({"prompt": "", "max_new_tokens": 4096, "seed": number}).encode()
        writer.write(
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await reader.readuntil(b"data: ")
        writer.transport.abort()
        began = time.perf_counter()
        while json.loads(await asyncio.to_thread(get, port, "/info"))["engine"]["running"]:
            assert time.perf_counter() - began < 5
        found.append(time.perf_counter() - began)
    return {"p50_ms": quantile(sorted(found), 0.5), "p99_ms": quantile(sorted(found), 0.99)}


async def idle_connections(port: int, pid: int, count: int = 5000) -> dict[str, object]:
    """Open, silent connections: what they cost, and whether a probe still answers."""
    before = resident_mb(pid)
    writers = [(await asyncio.open_connection(HOST, port))[1] for _ in range(count)]
    times = sorted([await timed_get(port, "/healthz") for _ in range(100)])
    grown = resident_mb(pid) - before
    for writer in writers:
        writer.transport.abort()
    return {"connections": count, "api_grew_mb": round(grown, 1), "healthz_p99_ms": quantile(times, 0.99)}


async def overload(port: int, burst: int = 700) -> dict[str, object]:
    """More requests at once than rows and queue hold: every answer is 200 or 429."""
    refusals: list[float] = []
    statuses: dict[int, int] = {}

    async def one(seed: int) -> None:
        began = time.perf_counter()
        status, _ = await post(port, "/generate", {"prompt": "", "max_new_tokens": 60, "seed": seed, "stream": False}, {})
        statuses[status] = statuses.get(status, 0) + 1
        if status == 429:
            refusals.append(time.perf_counter() - began)

    await asyncio.gather(*(one(seed) for seed in range(burst)))
    return {"statuses": statuses, "p50_of_429_ms": quantile(sorted(refusals), 0.5)}


async def measure(port: int, pid: int) -> None:
    print("probes beside 64 streams:", await probes_under_load(port), flush=True)
    print("row free after a reset:", await rows_freed(port), flush=True)
    print("idle connections:", await idle_connections(port, pid), flush=True)
    print("a burst of 700 requests:", await overload(port), flush=True)


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    port = free_port()
    command = [sys.executable, "-m", "service", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for(port, "/readyz")
        asyncio.run(measure(port, server.pid))
        print(f"peak memory of the API: {peak_mb(server.pid):.0f} MB")
    finally:
        server.terminate()
        status = server.wait(40)
    print(f"exit status {status}")


if __name__ == "__main__":
    main()
