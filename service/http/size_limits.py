"""Headers and bodies: bounded in size, bodies in time too, and read whole before a route runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError
from service.state import Service

FIELD_BYTES = len(": \r\n")


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Bytes of body that a request announces: 0 for none, None for chunks without end."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value)  # the HTTP parser has checked it
    return length


class HeaderLimit:
    """431 for a request line and headers that are too large (`service.http.protocol` stops those that never end)."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.max_bytes = service.settings.max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            target = len(scope.get("raw_path", b"")) + len(scope["query_string"])
            size = target + sum(len(name) + len(value) + FIELD_BYTES for name, value in scope["headers"])
            if size > self.max_bytes:
                raise ApiError("headers_too_large", f"request line and headers have {size} bytes, at most {self.max_bytes} are taken")
        await self.app(scope, receive, send)


class BodyLimit:
    """Hands routes a whole body. 413 for one that is too large, 408 for one that does not arrive in time."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.limit, self.timeout_s = service.settings.max_body_bytes, service.settings.request_timeout_s

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
