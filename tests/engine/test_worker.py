"""The engine's other process: real workers, real signals, and a machine that has none to give."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from service.engine import worker_process
from service.engine.engine import EngineClient
from service.engine.errors import EngineFailed, EngineLoading, EngineStopping
from service.engine.interface import EngineOptions
from service.engine.stream import EngineStream
from service.engine.supervisor import Supervisor
from tests.engine.engines import ENDLESS, current, gone, read, request, run, running, until, worker_pid
from tests.support.wait import LIMIT_S, wait_for

ROOT = Path(__file__).parents[2]


async def progress(streams: list[EngineStream], tokens: int) -> None:
    """Until there are so many more tokens, or all that will ever be."""
    enough = sum(len(s.tokens) for s in streams) + tokens
    await until(lambda: sum(len(s.tokens) for s in streams) >= enough or all(s.is_over for s in streams))


async def kill_worker(engine: EngineClient) -> None:
    """Until there is another one."""
    pid = worker_pid(engine)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    current(engine).deaths = 0  # a test may kill faster than tokens come: not what giving up is for
    await until(lambda: worker_pid(engine) not in (None, pid))


def test_fifty_sigkills_under_sixteen_streams_change_no_byte(options: EngineOptions) -> None:
    """The worker dies while it loads, and in the midst of the texts; every stream's text is its golden one."""

    async def body() -> None:
        rng = random.Random(2)
        kills = 0
        async with running(options) as engine:
            requests = [request(seed, new=3000, prompt=tuple([seed % 12] * (3 * seed))) for seed in range(16)]
            golden = [await read(engine.submit(r)) for r in requests]
            while kills < 50:
                streams = [engine.submit(r) for r in requests]
                readers = [asyncio.ensure_future(read(s)) for s in streams]
                while kills < 50 and not all(r.done() for r in readers):
                    if rng.random() < 0.5:  # not before there are more tokens
                        await progress(streams, rng.randrange(1, 2000))
                    await kill_worker(engine)
                    kills += 1
                for (text, completion), (expected, whole) in zip(await asyncio.gather(*readers), golden, strict=True):
                    assert text == expected
                    assert completion.finish_reason == whole.finish_reason
            assert engine.status.restarts >= 50
            assert not current(engine).streams

    run(body())


def test_a_hung_worker_is_replaced(options: EngineOptions) -> None:
    """SIGSTOP: the heartbeat ages, the worker is replaced, streams go on."""

    async def body() -> None:
        async with running(options) as engine:
            golden, _ = await read(engine.submit(request(4, new=4000)))
            stream = engine.submit(request(4, new=4000))
            reader = asyncio.ensure_future(read(stream))
            await until(lambda: len(stream.tokens) > 10)
            first = worker_pid(engine)
            assert first is not None
            os.kill(first, signal.SIGSTOP)
            await until(lambda: engine.status.heartbeat_age_s > 2)
            assert engine.status.state == "running", "two seconds may be a busy machine"
            await until(lambda: worker_pid(engine) not in (None, first) and engine.status.state == "running")
            assert gone(first)
            assert (await reader)[0] == golden

    run(body())


def test_queued_requests_survive_and_new_ones_queue_during_a_restart(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(replace(options, max_batch=2)) as engine:
            golden = [(await read(engine.submit(request(seed))))[0] for seed in range(8)]
            readers = [asyncio.ensure_future(read(engine.submit(request(seed)))) for seed in range(6)]
            await asyncio.sleep(0)
            os.kill(worker_pid(engine) or 0, signal.SIGKILL)
            await until(lambda: engine.status.state == "restarting")
            readers += [asyncio.ensure_future(read(engine.submit(request(seed)))) for seed in (6, 7)]
            assert [text for text, _ in await asyncio.gather(*readers)] == golden

    run(body())


def test_given_up_after_eight_deaths_without_a_token(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            stream = engine.submit(request(new=ENDLESS))
            await until(lambda: len(stream.tokens) > 0)
            while engine.status.state != "failed":
                if pid := worker_pid(engine):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.01)
            with pytest.raises(EngineFailed, match=r"died 8 times.*killed by SIGKILL"):
                await read(stream)
            with pytest.raises(EngineFailed):
                engine.submit(request())
            assert engine.status.restarts == 7

    run(body())


SCARCE = [errno.EMFILE, errno.EAGAIN, errno.ENOMEM]


@pytest.mark.parametrize("code", SCARCE, ids=errno.errorcode.get)
@pytest.mark.parametrize("times", [3, 100], ids=["for a while", "for good"])
def test_a_machine_that_cannot_start_a_worker(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, times: int
) -> None:
    """Without file descriptors, processes or memory no worker ever came again, requests hung, and no log said why."""
    spawn, left = worker_process.spawn, times

    def scarce(environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(code, os.strerror(code))
        return spawn(environment)

    async def body() -> None:
        async with running(options) as engine:
            golden, _ = await read(engine.submit(request(new=300)))
            stream = engine.submit(request(new=300))
            monkeypatch.setattr(worker_process, "spawn", scarce)
            os.kill(worker_pid(engine) or 0, signal.SIGKILL)
            await until(lambda: engine.status.state != "running")
            if times == 3:
                assert (await read(stream))[0] == golden
                assert engine.status.restarts >= 4
            else:
                with pytest.raises(EngineFailed, match=os.strerror(code)):
                    await read(stream)
                assert engine.status.state == "failed"

    with caplog.at_level(logging.WARNING):
        run(body())
    assert sum(os.strerror(code) in record.message for record in caplog.records) >= 3


def test_an_error_of_our_own_ends_every_stream_and_is_logged(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that keeps the engine alive may end unseen."""

    async def broken(supervisor: Supervisor) -> str:
        raise ZeroDivisionError("a bug")

    async def body() -> None:
        async with running(options) as engine:
            stream = engine.submit(request(new=ENDLESS))
            await until(lambda: stream.started)
            monkeypatch.setattr(Supervisor, "serve_once", broken)
            os.kill(worker_pid(engine) or 0, signal.SIGKILL)
            with pytest.raises(EngineFailed, match="a bug"):
                await read(stream)
            assert engine.status.state == "failed"

    run(body())
    assert any("ended by an error" in record.message for record in caplog.records)


@pytest.mark.parametrize(("so_far_s", "retry_after_s"), [(0.0, 2.0), (10.0, 10.0), (600.0, 60.0)])
def test_who_comes_while_it_loads_is_told_to_wait_as_long_again(options: EngineOptions, so_far_s: float, retry_after_s: float) -> None:
    """It was a second or two, whatever loads, so that a client with eight retries gave up on a large model."""

    async def body() -> None:
        engine = EngineClient(options)
        await engine.start()
        engine.rollout.loading_since -= so_far_s
        with pytest.raises(EngineLoading) as refused:
            engine.submit(request())
        assert retry_after_s <= refused.value.retry_after_s <= min(60.0, retry_after_s + LIMIT_S)
        await engine.close()

    run(body())


def test_loading_then_draining(options: EngineOptions) -> None:
    async def body() -> None:
        engine = EngineClient(options)
        await engine.start()
        assert engine.status.state == "loading"
        with pytest.raises(EngineLoading):
            engine.submit(request())
        await current(engine).settled.wait()
        short = asyncio.ensure_future(read(engine.submit(request(new=50))))
        endless = asyncio.ensure_future(read(engine.submit(request(new=ENDLESS))))
        await asyncio.sleep(0)
        draining = asyncio.ensure_future(engine.drain(2 * LIMIT_S))
        assert len((await short)[0]) == 50
        with pytest.raises(EngineStopping):
            engine.submit(request())
        assert not draining.done()
        await engine.drain(0)
        with pytest.raises(EngineStopping):
            await endless
        await draining
        pid = worker_pid(engine)
        await engine.close()
        assert pid is not None
        assert gone(pid)

    run(body())


def test_closing_at_once_leaves_no_worker(options: EngineOptions) -> None:
    """Closed before its first worker was connected, the engine once waited for it for ever."""

    async def body() -> None:
        for turns in range(4):
            engine = EngineClient(options)
            await engine.start()
            for _ in range(turns):
                await asyncio.sleep(0)
            pid = worker_pid(engine)
            await asyncio.wait_for(engine.close(), LIMIT_S)
            assert worker_pid(engine) is None
            assert pid is None or gone(pid)
            assert engine.status.restarts == 0

    run(body())


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.engine.engines import current, engine_options, running, worker_pid
async def main():
    async with running(engine_options(Path(sys.argv[1]), Path(sys.argv[2]))) as engine:
        print(worker_pid(engine), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, "stopped worker"])
def test_no_worker_outlives_its_parent(options: EngineOptions, how: signal.Signals | str) -> None:
    command = [sys.executable, "-c", PARENT, str(options.checkpoint), str(options.cache)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        if how == "stopped worker":
            os.kill(pid, signal.SIGSTOP)
        os.kill(parent.pid, how if isinstance(how, signal.Signals) else signal.SIGKILL)
        parent.wait(LIMIT_S)
    wait_for(lambda: gone(pid), "an orphan")


def test_the_worker_ignores_the_signals_of_the_group(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            pid = worker_pid(engine)
            assert pid is not None
            stream = engine.submit(request(1, new=5000))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                os.kill(pid, number)
            text, _ = await read(stream)
            assert len(text) == 5000
            assert worker_pid(engine) == pid

    run(body())


def environment_of(pid: int | None) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_no_key_is_in_the_workers_environment(options: EngineOptions) -> None:
    """It reads a checkpoint that somebody else may have made, so it holds nothing that it does not need."""
    secrets = {"FOLIO_API_KEYS": "sesame", "FOLIO_ADMIN_KEY": "sesame", "AWS_SECRET_ACCESS_KEY": "sesame", "DATABASE_URL": "sesame"}
    needed = {"OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}

    async def body() -> None:
        async with running(replace(options, environment={**os.environ, **secrets, **needed})) as engine:
            found = environment_of(worker_pid(engine))
            assert b"sesame" not in found
            variables = dict(each.split(b"=", 1) for each in found.split(b"\0") if each)
            assert {name: variables[name.encode()].decode() for name in needed} == needed

    run(body())
