"""Running engines with real workers, for tests that are coroutines."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from model.params import SamplingParams
from service.engine.engine import EngineClient
from service.engine.interface import Chunk, Completion, EngineOptions, GenerationRequest
from service.engine.stream import EngineStream
from service.engine.supervisor import Supervisor
from tests.support.wait import LIMIT_S, MISSED, PAUSE_S

Result = tuple[str, Completion]
ENDLESS = 100_000_000
"""Tokens of a text that is still running whenever a test looks."""


def engine_options(checkpoint: Path, cache: Path) -> EngineOptions:
    """The smallest engine on a CPU."""
    return EngineOptions(
        checkpoint=checkpoint,
        checkpoints=None,
        watch=None,
        trusted_keys=None,
        device="cpu",
        kernels="auto",
        cpu="auto",
        threads=1,
        speculation=True,
        stride=None,
        cache=cache,
        max_batch=16,
        max_queue=None,
        queue_timeout_s=600.0,
        stream_buffer_tokens=1024,
        environment=os.environ,
    )


@asynccontextmanager
async def running(options: EngineOptions) -> AsyncIterator[EngineClient]:
    """An engine whose first checkpoint is ready, or refused."""
    engine = EngineClient(options)
    await engine.start()
    await current(engine).settled.wait()
    try:
        yield engine
    finally:
        await engine.close()


def current(engine: EngineClient) -> Supervisor:
    assert engine.rollout.current is not None
    return engine.rollout.current


def request(
    seed: int = 0, *, new: int = 200, prompt: tuple[int, ...] = (1, 2, 3), stop: tuple[str, ...] = (), **fields: Any
) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, params=SamplingParams(max_new_tokens=new, seed=seed), stop=stop, **fields)


async def read(stream: EngineStream, chunks: list[Chunk] | None = None) -> Result:
    """A stream's text to its end; ``chunks`` gets what has come so far."""
    text = ""
    async with stream:
        async for chunk in stream:
            text += chunk.text
            if chunks is not None:
                chunks.append(chunk)
        return text, stream.completion


def worker_pid(engine: EngineClient) -> int | None:
    """The process that serves the current checkpoint, None while there is none."""
    worker = current(engine).worker
    return worker.process.pid if worker is not None else None


async def until(condition: Callable[[], object], what: str = MISSED) -> None:
    """Wait on the engine's own loop: what a condition looks at changes there only."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < LIMIT_S, what
        await asyncio.sleep(PAUSE_S)


def gone(pid: int) -> bool:
    """No such process, or a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)
