"""Waiting for what another thread or process does: until it holds, and never for a time that somebody guessed.

A test must not fail because its machine has other work, and must fail when nothing happens: so the limit is far beyond what
anything here takes, and whoever wants to know how long something took says so in a benchmark.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 60.0
"""For what takes a second or two on a quiet machine."""
PAUSE_S = 0.005
MISSED = "it did not happen in time"

What = str | Callable[[], str]
"""What did not happen, or a function that finds out (the log of a process, say)."""


def wait_for(condition: Callable[[], object], what: What = MISSED, *, limit_s: float = LIMIT_S, pause_s: float = PAUSE_S) -> float:
    """Seconds until ``condition()`` was true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, described(what)
        time.sleep(pause_s)
    return time.monotonic() - began


async def until(condition: Callable[[], object], what: What = MISSED, *, limit_s: float = LIMIT_S) -> float:
    """The same for a test that is a coroutine. The condition is asked in a thread, since it may block for a moment."""
    began = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - began < limit_s, described(what)
        await asyncio.sleep(PAUSE_S)
    return time.monotonic() - began


def described(what: What) -> str:
    return what if isinstance(what, str) else what()
