"""Request bodies: bounded in size and time, read whole before a route runs; refusals that outlive a client's sending."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError
from service.state import Service

LINGER_BYTES = 8 << 20
LINGER_S = 2.0


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Bytes of body that a request announces: 0 for none, None for chunks without end."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value)  # the HTTP parser has checked it
    return length


class BodyLimit:
    """Hands routes a whole body. 413 for one that is too large, 408 for one that does not arrive in time."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.limit, self.timeout_s = service.settings.max_body_bytes, service.settings.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (length := declared_length(scope["headers"])) == 0:
            await self.app(scope, receive, send)
            return
        if length is not None and length > self.limit:
            raise self.too_large()
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self.read(receive)
        except TimeoutError:
            raise ApiError("request_timeout", f"the body did not arrive within {self.timeout_s:g} s") from None
        if body is not None:
            await self.app(scope, replay(body, receive), send)

    def too_large(self) -> ApiError:
        """The refusal."""
        return ApiError("body_too_large", f"the body has more than {self.limit} bytes")

    async def read(self, receive: Receive) -> bytes | None:
        """The body, or None if the client left. Raises ApiError."""
        parts = bytearray()
        while (message := await receive())["type"] == "http.request":
            parts += message.get("body", b"")
            if len(parts) > self.limit:
                raise self.too_large()
            if not message.get("more_body", False):
                return bytes(parts)
        return None


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a whole body first."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


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
