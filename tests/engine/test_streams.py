"""One text as its reader sees it: chunks, stops, withheld parts, slow readers, and how it ends."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from service.engine.errors import QueueFull
from service.engine.interface import Chunk, EngineOptions
from tests.engine.engines import ENDLESS, current, read, request, run, running, until


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


def test_cancelling_frees_the_row(options: EngineOptions) -> None:
    """The only row, whether its text runs or the next one still waits for it."""

    async def body() -> None:
        async with running(replace(options, max_batch=1)) as engine:
            async with engine.submit(request(new=ENDLESS)) as stream:
                await anext(aiter(stream))
                queued = engine.submit(request(new=5))
                queued.cancel()
            assert len((await read(engine.submit(request(new=1))))[0]) == 1
            supervisor = current(engine)
            assert (supervisor.streams, supervisor.keys, supervisor.by_key, supervisor.queue_timers) == (set(), {}, {}, {})

    run(body())


def test_a_reader_that_stops_is_suspended_and_goes_on_identically(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(replace(options, max_batch=1, stream_buffer_tokens=64)) as engine:
            golden, _ = await read(engine.submit(request(9, new=2000)))
            async with engine.submit(request(9, new=2000)) as slow:
                chunks = aiter(slow)
                text = (await anext(chunks)).text
                await until(lambda: slow.suspended)
                assert len(slow.tokens) < 64 + 200, "a buffer and at most one decode"
                neighbour, _ = await read(engine.submit(request(1, new=50)))  # the only row is free for others
                assert len(neighbour) == 50
                rng = random.Random(3)
                async for chunk in chunks:
                    text += chunk.text
                    if rng.random() < 0.2:
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


@pytest.mark.parametrize("timeout_s", [0.01, 3600.0], ids=["by its timer", "in its midst"])
def test_timeout_keeps_a_prefix(options: EngineOptions, timeout_s: float) -> None:
    async def body() -> None:
        async with running(options) as engine:
            golden, _ = await read(engine.submit(request(3, new=2000)))
            chunks: list[Chunk] = []
            stream = engine.submit(request(3, new=ENDLESS, timeout_s=timeout_s))
            reader = asyncio.ensure_future(read(stream, chunks))
            if timeout_s > 1:
                await until(lambda: chunks)
                stream.expire()
            text, completion = await reader
            assert completion.finish_reason == "timeout"
            assert text == completion.text
            shared = min(len(text), len(golden))
            assert text[:shared] == golden[:shared]
            assert shared > 0 or timeout_s < 1

    run(body())


def test_a_full_queue_refuses_at_once(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(replace(options, max_batch=1, max_queue=2)) as engine:
            streams = [engine.submit(request(seed, new=ENDLESS)) for seed in range(3)]
            with pytest.raises(QueueFull) as refused:
                engine.submit(request())
            assert refused.value.retry_after_s >= 1
            for stream in streams:
                stream.cancel()
            await read(engine.submit(request(new=3)))

    run(body())


def test_waiting_too_long_for_a_row_ends_a_stream(options: EngineOptions) -> None:
    """And leaves nothing of it behind, though its reader never came."""

    async def body() -> None:
        async with running(replace(options, max_batch=1)) as engine:
            first = engine.submit(request(new=ENDLESS))
            reader = asyncio.ensure_future(read(first))  # a text that nobody reads would give its row up
            await until(lambda: first.started)
            current(engine).queue_timeout_s = 0.05
            queued = engine.submit(request())
            await until(lambda: queued.error is not None)
            assert queued.error is not None
            assert queued.error.code == "queue_timeout"
            assert current(engine).streams == {first}
            reader.cancel()

    run(body())
