"""How long an event loop computes without a pause."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self


class LoopWatch:
    """Within it, ``slowest_s`` becomes the most processor time that the loop's thread took between two turns of the loop.

    Processor time of that thread, not of the wall: a test must not fail because its machine has other work.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.slowest_s = 0.0
        self.over = False

    async def _watch(self) -> None:
        before = time.thread_time()
        while not self.over:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.slowest_s = max(self.slowest_s, now - before)
            before = now

    def __enter__(self) -> Self:
        self.watching = asyncio.run_coroutine_threadsafe(self._watch(), self.loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.over = True
        self.watching.result(60)
