"""Server-sent events on their way to a client: what is iterated is sent, and the client's leaving ends the iteration.

A response here is raw ASGI. One task iterates and sends, one watches for the client's leaving, one sends a comment when nothing
else was sent for a while. Whichever way it ends, the contexts that the stream holds are left, which frees what it was made of.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import ClientGoneError, CutOffError

T = TypeVar("T")

KEEP_ALIVE = b": keep-alive\n"
"""One line: many clients take the empty line of ``\\n\\n`` for the end of an event, and find it without data."""
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, None]) -> T:
    """The result of ``work``; ``helpers`` run beside it. When the client leaves, all end. Raises ClientGoneError then."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(disconnected(receive))
    others = [watcher, *map(asyncio.create_task, helpers)]
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, *others):
            each.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)


class EventStream(Response):
    """A stream of events. ``held`` are contexts that it enters before its first byte and leaves after its last.

    With ``is_whole`` a body that turns out not to be whole lacks its last chunk: no cache keeps it (RFC 9111 §3.3).
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        held: Sequence[AbstractAsyncContextManager[object]],
        *,
        headers: dict[str, str],
        keep_alive_s: float,
        is_whole: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(headers=headers | STREAM_HEADERS)
        del self.headers["content-length"]
        self.events, self.held = events, held
        self.keep_alive_s = keep_alive_s
        self.is_whole = is_whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            for context in self.held:
                await stack.enter_async_context(context)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            writer = Writer(send, self.is_whole)
            with suppress(ClientGoneError):
                await unless_gone(receive, writer.send_all(self.events), writer.keep_alive(self.keep_alive_s))


class Writer:
    """Sends bytes, and knows when it last did."""

    def __init__(self, send: Send, is_whole: Callable[[], bool] | None) -> None:
        self._send, self.is_whole = send, is_whole
        self._clock = asyncio.get_running_loop().time
        self.last = self._clock()
        self.busy = False

    async def send_all(self, events: AsyncGenerator[bytes, None]) -> None:
        """Send what is iterated, then the end of the body. Raises CutOffError if it is not whole."""
        async with aclosing(events):
            async for data in events:
                await self.send(data)
        if self.is_whole is not None and not self.is_whole():
            raise CutOffError
        self.busy = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(self, data: bytes) -> None:
        """Returns when the transport can take more: back-pressure for the iteration."""
        self.busy = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.last = self._clock()
        self.busy = False

    async def keep_alive(self, interval: float) -> None:
        """Send a comment whenever nothing was sent for ``interval`` seconds, so that no proxy gives the stream up."""
        while True:
            await asyncio.sleep(max(self.last + interval - self._clock(), 0.001))
            if self.busy:
                self.last = self._clock()  # a reader that takes nothing needs no comment
            elif self._clock() - self.last >= interval:
                await self.send(KEEP_ALIVE)
