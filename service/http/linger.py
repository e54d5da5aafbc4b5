"""How answers end: lingering where one comes before its request is read, and bodies that end with their connection."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from uvicorn._types import Scope as AnyScope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.errors import CutOffError
from service.http.size_limits import declared_length
from service.state import Service

LINGER_BYTES = 8 << 20
LINGER_S = 2.0
"""How much of an unwanted body is read and forgotten, and for how long."""


class Linger:
    """An answer given before the body has arrived is sent at once; then the body is drained, and the connection ends.

    Closing at once would reset the connection, and a client that is still sending would never read why it was refused.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or declared_length(scope["headers"]) == 0:
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        await self.app(scope, exchange.receive, exchange.send)


class Exchange:
    """One request with a body, and how much of it has arrived."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.waits_for_100 = any(name == b"expect" for name, _ in scope["headers"])
        self.arriving = True

    async def receive(self) -> Message:
        """ASGI's receive."""
        self.waits_for_100 = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.arriving = False
        return message

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if self.arriving and message["type"] == "http.response.start":
            if not self.waits_for_100:
                await self.drain(0)  # what is here already costs no connection
            if self.arriving:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        if self.arriving and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            if not self.waits_for_100:  # nobody sends what was not asked for
                await self.drain(LINGER_S)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def drain(self, seconds: float) -> None:
        """Read and forget."""
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while self.arriving and size < LINGER_BYTES:
                    size += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


class CutOff:
    """An application whose CutOffError ends the connection within the body, which uvicorn would take for a mistake."""

    def __init__(self, app: ASGI3Application, cycle: RequestResponseCycle) -> None:
        self.app, self.cycle = app, cycle

    async def __call__(self, scope: AnyScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        try:
            await self.app(scope, receive, send)
        except CutOffError:
            self.cycle.disconnected = True
            self.cycle.transport.close()


class CloseDelimited:
    """An application for HTTP/1.0, which knows no chunks: a body ends with the connection."""

    def __init__(self, app: ASGI3Application, cycle: RequestResponseCycle) -> None:
        self.app, self.cycle = app, cycle

    async def __call__(self, scope: AnyScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self.cycle.chunked_encoding = False
        await self.app(scope, receive, self.send)

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI's send; each part of a body is as long as uvicorn expects the rest to be."""
        if message["type"] == "http.response.body":
            self.cycle.expected_content_length = len(message.get("body", b""))
        await self.cycle.send(message)
