"""Refusals that outlive a client's sending."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.size_limits import declared_length
from service.state import Service

LINGER_BYTES = 8 << 20
LINGER_S = 2.0
"""How much of an unwanted body is read and forgotten, and for how long."""


class Linger:
    """An answer given before the body has arrived is sent at once, then the body is drained for a while, then the connection ends.

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
