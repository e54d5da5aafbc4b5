"""Tasks that nobody awaits. One place starts them all, so that none can end unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("folio")


class Background:
    """Tasks that run until they are done or `close` is called.

    >>> background = Background()
    >>> background.start("follow", self.follow(path))
    >>> await background.close()

    An exception that ends a task is logged, and handed to ``on_failure``.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, name: str, coroutine: Coroutine[Any, Any, None], on_failure: Callable[[BaseException], None] | None = None
    ) -> asyncio.Task[None]:
        """Run a coroutine beside the caller."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, on_failure))
        return task

    def _ended(self, task: asyncio.Task[None], on_failure: Callable[[BaseException], None] | None) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("the task %r ended by an error", task.get_name(), exc_info=error)
        if on_failure is not None:
            on_failure(error)

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
