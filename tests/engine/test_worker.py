"""The engine in its own process: real workers, real signals."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from model.params import SamplingParams
from service.engine.engine import EngineClient
from service.engine.interface import (
    Chunk,
    Completion,
    EngineFailed,
    EngineLoading,
    EngineOptions,
    EngineStopping,
    GenerationRequest,
    QueueFull,
)
from service.engine.stream import EngineStream

Result = tuple[str, Completion]


@pytest.fixture
def options(checkpoint_dir: Path, kernel_cache: Path) -> EngineOptions:
    return EngineOptions(
        checkpoint=checkpoint_dir,
        checkpoints=None,
        watch=None,
        trusted_keys=None,
        device="cpu",
        dtype="float32",
        kernels="native",
        threads=1,
        stride=None,
        cache=kernel_cache,
        max_batch=16,
        max_queue=None,
        queue_timeout_s=60.0,
        stream_buffer_tokens=1024,
    )


@asynccontextmanager
async def running(options: EngineOptions) -> AsyncIterator[EngineClient]:
    engine = EngineClient(options)
    await engine.start()
    assert engine.worker is not None
    await engine.worker.settled.wait()
    try:
        yield engine
    finally:
        await engine.close()


def request(
    seed: int = 0, *, new: int = 200, prompt: tuple[int, ...] = (1, 2, 3), stop: tuple[str, ...] = (), **fields: object
) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, params=SamplingParams(max_new_tokens=new, seed=seed), stop=stop, **fields)  # type: ignore[arg-type]


async def read(stream: EngineStream, chunks: list[Chunk] | None = None) -> Result:
    text = ""
    async with stream:
        async for chunk in stream:
            text += chunk.text
            if chunks is not None:
                chunks.append(chunk)
        return text, stream.completion


def worker_pid(engine: EngineClient) -> int | None:
    return engine.worker.process.pid if engine.worker and engine.worker.process else None


async def until(condition: Callable[[], bool], limit_s: float = 10.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def gone(pid: int) -> bool:
    """No such process, or a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def run(coroutine: Awaitable[None]) -> None:
    async def main() -> None:
        await coroutine

    asyncio.run(main())


def test_text_index_and_completion_agree(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            chunks: list[Chunk] = []
            text, completion = await read(engine.submit(request(new=300)), chunks)
            assert text == completion.text
            assert len(text) == completion.completion_tokens == chunks[-1].index == 300
            assert [c.index for c in chunks] == sorted({c.index for c in chunks})
            assert completion.finish_reason == "length"
            assert 0 <= completion.queue_s <= completion.ttft_s <= completion.total_s
            assert len(chunks) < 300, "ready tokens are merged"

    run(body())


def test_fifty_sigkills_under_sixteen_streams_change_no_byte(options: EngineOptions) -> None:
    """The worker dies at 50 random moments; every stream's text is its golden one."""

    async def body() -> None:
        rng = random.Random(2)
        kills = 0
        async with running(options) as engine:
            requests = [request(seed, new=3000, prompt=tuple([seed % 12] * (3 * seed))) for seed in range(16)]
            golden = [await read(engine.submit(r)) for r in requests]
            while kills < 50:
                readers = [asyncio.ensure_future(read(engine.submit(r))) for r in requests]
                while not all(r.done() for r in readers) and kills < 50:
                    await asyncio.sleep(rng.random() * 0.15)
                    if pid := worker_pid(engine):
                        os.kill(pid, signal.SIGKILL)
                        kills += 1
                        assert engine.worker
                        engine.worker.deaths = 0  # the test kills faster than tokens come: not what giving up is for
                results = await asyncio.gather(*readers)
                for (text, completion), (expected, whole) in zip(results, golden, strict=True):
                    assert text == expected
                    assert completion.finish_reason == whole.finish_reason
            assert engine.status.restarts >= 40
            assert not engine.worker.streams if engine.worker else False

    run(body())


def test_a_hung_worker_is_replaced_within_five_seconds(options: EngineOptions) -> None:
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
            stopped = time.monotonic()
            await until(lambda: engine.status.heartbeat_age_s > 2, 4)
            await until(lambda: worker_pid(engine) not in (None, first) and engine.status.state == "running", 8)
            assert time.monotonic() - stopped < 6.0
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
            stream = engine.submit(request(new=2_000_000))
            while engine.status.state != "failed":
                if pid := worker_pid(engine):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.01)
            with pytest.raises(EngineFailed, match="died 8 times"):
                await read(stream)
            with pytest.raises(EngineFailed):
                engine.submit(request())
            assert engine.status.restarts == 7

    run(body())


def test_cancelling_frees_the_row_at_once(options: EngineOptions) -> None:
    """Reader leaves → row free, within 100 ms; counted by where it was."""

    async def body() -> None:
        async with running(replace(options, max_batch=1)) as engine:
            assert engine.worker
            async with engine.submit(request(new=1_000_000)) as stream:
                await anext(aiter(stream))
                queued = engine.submit(request(new=5))
                queued.cancel("queued")
            golden = asyncio.ensure_future(read(engine.submit(request(new=1))))
            assert await until(golden.done) < 1.0
            assert engine.worker.cancelled == {"queued": 1, "running": 1}
            await until(lambda: not engine.worker.streams if engine.worker else False)
            assert not engine.worker.keys
            assert not engine.worker.by_key

    run(body())


def test_a_reader_that_stops_is_suspended_and_goes_on_identically(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(replace(options, max_batch=1, stream_buffer_tokens=64)) as engine:
            golden, _ = await read(engine.submit(request(9, new=2000)))
            async with engine.submit(request(9, new=2000)) as slow:
                chunks = aiter(slow)
                text = (await anext(chunks)).text
                await until(lambda: slow.suspended)
                assert len(slow.tokens) < 64 + 200, "a buffer and at most a burst"
                neighbour, _ = await read(engine.submit(request(1, new=50)))  # the only row is free for others
                assert len(neighbour) == 50
                async for chunk in chunks:
                    text += chunk.text
                    if random.random() < 0.2:
                        await asyncio.sleep(0.02)
                assert text == golden == slow.completion.text

    run(body())


def test_what_comes_while_the_reader_is_busy_is_not_lost(options: EngineOptions) -> None:
    """The end of a text was dropped if its generation ended while its reader was still sending what came before."""

    async def body() -> None:
        async with running(options) as engine:
            golden, _ = await read(engine.submit(request(9, new=500)))
            async with engine.submit(request(9, new=500)) as stream:
                text = ""
                async for chunk in stream:
                    text += chunk.text
                    await until(lambda: stream.is_over)
                assert text == golden == stream.completion.text

    run(body())


def test_stops_are_exact_and_never_leak(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            plain, _ = await read(engine.submit(request(6, new=600)))
            for length in (1, 2, 3, 5):
                for start in (0, 17, 100, 333):
                    stop = plain[start : start + length]
                    chunks: list[Chunk] = []
                    text, completion = await read(engine.submit(request(6, new=600, stop=(stop, "zzz"))), chunks)
                    assert text == completion.text == plain[: plain.find(stop)]
                    assert completion.finish_reason == "stop"
                    assert completion.completion_tokens == plain.find(stop) + length
            hold = plain[590:] + "#"  # no such character: it is held to the end and never completes
            text, completion = await read(engine.submit(request(6, new=600, stop=(hold,))))
            assert text == plain
            assert completion.finish_reason == "length", "a stop that never completes is flushed at the end"

    run(body())


def test_withholding_what_was_sent(options: EngineOptions) -> None:
    """Resume: for every cut, the rest is exactly what is missing."""

    async def body() -> None:
        async with running(options) as engine:
            plain, _ = await read(engine.submit(request(5, new=80)))
            for skip in range(81):
                chunks: list[Chunk] = []
                text, completion = await read(engine.submit(request(5, new=80, skip_tokens=skip)), chunks)
                assert plain[:skip] + text == plain == completion.text
                assert all(c.index > skip for c in chunks)
            stop = plain[50:53]
            cut = plain.find(stop)
            for skip in range(cut + 1):
                text, _ = await read(engine.submit(request(5, new=80, skip_tokens=skip, stop=(stop,))))
                assert plain[:skip] + text == plain[:cut]

    run(body())


def test_timeout_keeps_a_prefix(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            golden, _ = await read(engine.submit(request(3, new=20_000)))
            text, completion = await read(engine.submit(request(3, new=1_000_000, timeout_s=0.2)))
            assert completion.finish_reason == "timeout"
            assert text == completion.text
            shared = min(len(text), len(golden))
            assert text[:shared] == golden[:shared]
            assert shared > 0

    run(body())


def test_a_full_queue_refuses_at_once(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(replace(options, max_batch=1, max_queue=2)) as engine:
            streams = [engine.submit(request(seed, new=100_000)) for seed in range(3)]
            with pytest.raises(QueueFull) as refused:
                engine.submit(request())
            assert refused.value.retry_after_s >= 1
            for stream in streams:
                stream.cancel("running")
            await read(engine.submit(request(new=3)))

    run(body())


def test_loading_then_draining(options: EngineOptions) -> None:
    async def body() -> None:
        engine = EngineClient(options)
        await engine.start()
        assert engine.status.state == "loading"
        with pytest.raises(EngineLoading):
            engine.submit(request())
        assert engine.worker
        await engine.worker.settled.wait()
        short = asyncio.ensure_future(read(engine.submit(request(new=50))))
        endless = asyncio.ensure_future(read(engine.submit(request(new=10_000_000))))
        await asyncio.sleep(0.05)
        await engine.drain(1.0)
        with pytest.raises(EngineStopping):
            engine.submit(request())
        assert len((await short)[0]) == 50
        with pytest.raises(EngineStopping):
            await endless
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
            await asyncio.wait_for(engine.close(), 5)
            assert worker_pid(engine) is None
            assert pid is None or gone(pid)
            assert engine.status.restarts == 0

    run(body())


@pytest.mark.parametrize("damage", ["missing", "selftest", "truncated"])
def test_a_checkpoint_that_cannot_be_served_fails_with_its_reason(options: EngineOptions, tmp_path: Path, damage: str) -> None:
    import json
    import shutil

    path = tmp_path / "bad"
    if damage != "missing":
        shutil.copytree(options.checkpoint, path)
    if damage == "truncated":
        data = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    if damage == "selftest":
        import hashlib

        selftest = json.loads((path / "selftest.json").read_text())
        selftest["cases"][0]["logits"][3] += 0.5
        (path / "selftest.json").write_text(json.dumps(selftest))
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["selftest.json"] = hashlib.sha256((path / "selftest.json").read_bytes()).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))

    async def body() -> None:
        async with running(replace(options, checkpoint=path)) as engine:
            assert engine.status.state == "failed"
            expected = {"missing": "not a directory", "selftest": "logit of token 3", "truncated": "model.safetensors"}
            assert expected[damage] in engine.status.message
            assert "\n" not in engine.status.message

    run(body())


PARENT = """
import asyncio, sys
from pathlib import Path
from service.engine.engine import EngineClient
from service.engine.interface import EngineOptions
async def main():
    engine = EngineClient(EngineOptions(checkpoint=Path(sys.argv[1]), checkpoints=None, watch=None, trusted_keys=None,
        device="cpu", dtype="float32", kernels="native",
        threads=1, stride=None, cache=Path(sys.argv[2]), max_batch=4, max_queue=None, queue_timeout_s=9, stream_buffer_tokens=99))
    await engine.start()
    await engine.worker.settled.wait()
    print(engine.worker.process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, "stopped worker"])
def test_no_worker_outlives_its_parent(options: EngineOptions, how: signal.Signals | str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(options.checkpoint), str(options.cache)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        if how == "stopped worker":
            os.kill(pid, signal.SIGSTOP)
        os.kill(parent.pid, how if isinstance(how, signal.Signals) else signal.SIGKILL)
        parent.wait(10)
    deadline = time.monotonic() + 5
    while not gone(pid):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.01)


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
