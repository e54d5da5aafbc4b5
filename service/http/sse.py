"""Server-sent events: built by hand from ASCII JSON, sent as the engine hands text out, ended when the client leaves.

A response here is raw ASGI. Three tasks serve a stream: one produces events, one watches for the client's leaving, one sends a
comment when nothing else was sent for a while. Whichever way it ends, the text streams' contexts are left, which frees their rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.engine.interface import TextStream
from service.errors import ApiError, ClientGoneError, as_api_error
from service.request_state import RequestState

logger = logging.getLogger("folio")
T = TypeVar("T")
Emit = Callable[[bytes], Awaitable[None]]

KEEP_ALIVE = b": keep-alive\n\n"
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, None]) -> T:
    """The result of ``work``, cancelled as soon as the client leaves. Raises ClientGoneError then. ``helpers`` run beside it."""
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
    """A stream of events over admitted text streams.

    ``produce`` sends events with the function it is given and returns the last one; ``fail`` makes the last one of an error.
    """

    def __init__(
        self,
        streams: Sequence[TextStream],
        produce: Callable[[Emit], Coroutine[Any, Any, bytes]],
        fail: Callable[[ApiError], bytes],
        state: RequestState,
        *,
        headers: dict[str, str],
        keep_alive_s: float,
    ) -> None:
        self.streams = streams
        self.produce = produce
        self.fail = fail
        self.state = state
        self.keep_alive_s = keep_alive_s
        self.background = None
        self.status_code = 200
        self.body = b""
        self.init_headers(headers | STREAM_HEADERS)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            for stream in self.streams:
                await stack.enter_async_context(stream)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            writer = Writer(send)
            with suppress(ClientGoneError):
                await unless_gone(receive, self.run(writer), writer.keep_alive(self.keep_alive_s))

    async def run(self, writer: Writer) -> None:
        """Send every event; exactly one ending closes the stream, whatever goes wrong."""
        try:
            last = await self.produce(writer.send)
        except Exception as error:
            refusal = as_api_error(error)
            self.state.code = refusal.code
            if refusal.status == 500:
                logger.error("a stream failed", exc_info=error, extra={"fields": {"request_id": self.state.request_id}})
            last = self.fail(refusal)
        await writer.end(last)


class Writer:
    """Sends bytes, and knows when it last did."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._clock = asyncio.get_running_loop().time
        self.last = self._clock()
        self.busy = False

    async def send(self, data: bytes) -> None:
        """Returns when the transport can take more: back-pressure for the producer."""
        self.busy = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.last = self._clock()
        self.busy = False

    async def end(self, data: bytes) -> None:
        """Send the last bytes; nothing is sent after them."""
        self.busy = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def keep_alive(self, interval: float) -> None:
        """Send a comment whenever nothing was sent for ``interval`` seconds, so that no proxy gives the stream up."""
        while True:
            await asyncio.sleep(max(self.last + interval - self._clock(), 0.001))
            if self.busy:
                self.last = self._clock()  # a reader that takes nothing needs no comment
            elif self._clock() - self.last >= interval:
                await self.send(KEEP_ALIVE)
