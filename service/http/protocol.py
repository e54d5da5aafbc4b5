"""HTTP/1 on a socket: uvicorn's protocol, and the limits that it leaves to others.

What no ASGI layer can see is bounded here: headers that never end, clients that take no byte, connections that send nothing. Each
costs its own connection and nothing else. Every limit comes from `service.settings`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from typing import Any

from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import STATUS
from service.http.linger import LINGER_BYTES, LINGER_S
from service.http.size_limits import declared_length
from service.settings import Settings

WRITE_BUFFER_BYTES = 32 << 10
SOCKET_BUFFER_BYTES = 128 << 10
"""A slow reader's cost: the kernel would grow its buffer to megabytes of text that is generated for nobody."""


class Protocol(HttpToolsProtocol):
    """One connection. ``make_protocol`` gives it the settings."""

    settings: Settings
    count_refusal: Any

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; its first request must come in time."""
        super().connection_made(transport)
        self.running: RequestResponseCycle | None = None
        self.in_head = False
        self.head_bytes = 0
        self.refused = False
        self.drained_bytes = 0
        self.head_timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if (sock := transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._arm_head_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request. Headers are bounded while they arrive; a client that breaks the protocol loses its connection."""
        if self.transport.is_closing():
            return
        if self.refused:
            self._drain(len(data))
            return
        if self.head_timer is None and self._idle:
            self._arm_head_timer()
        super().data_received(data)
        if not self.in_head:
            self.head_bytes = 0
        elif not self.refused:
            self.head_bytes += len(data)
            if self.head_bytes > self.settings.max_header_bytes + len(data) and self._idle:
                self._refuse("headers_too_large", f"request line and headers have more than {self.settings.max_header_bytes} bytes")

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.running is None or self.running.response_complete

    def _arm_head_timer(self) -> None:
        self.head_timer = self.loop.call_later(self.settings.header_timeout_s, self._head_timeout)

    def _head_timeout(self) -> None:
        self.head_timer = None
        if not self._idle:
            self._arm_head_timer()  # an answer is on its way; what is half sent behind it can wait
        elif self.in_head and not self.refused:
            self._refuse("request_timeout", f"the headers did not arrive within {self.settings.header_timeout_s:g} s")
        else:
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self.in_head = True
        if self.head_timer is None:
            self._arm_head_timer()

    def on_headers_complete(self) -> None:
        """A request's headers are here; it is answered when those before it are."""
        self.in_head = False
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
        super().on_headers_complete()
        if self.cycle.scope["http_version"] == "1.0":
            self.cycle.__class__ = CloseDelimitedCycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets our error."""
        self._refuse_or_end("the request is not valid HTTP/1.1", broken=getattr(self.cycle, "more_body", False))

    def _unsupported_upgrade_warning(self) -> None:
        """An ``Upgrade`` is not taken up. The parser has lost the body of such a request, if it had one, and parses no other."""
        self._refuse_or_end("Upgrade is not offered: send the request without it", broken=declared_length(self.headers) != 0)

    def _refuse_or_end(self, message: str, *, broken: bool) -> None:
        """Refuse a broken request; behind an answer that is on its way only end the connection, since two would mix."""
        if broken and not self._idle and self.running is self.cycle and not self.cycle.response_started:
            self.cycle.disconnected = True  # the application learns no more of it
            self.cycle.message_event.set()
            self.running = None
        if self._idle:
            self._refuse("invalid_http", message)
        else:
            self.refused = True
            self.cycle.keep_alive = False

    def _refuse(self, code: str, message: str) -> None:
        """Answer without a route, end our side, and let the client finish its sending: closing at once could destroy the answer."""
        self.refused = True
        self.count_refusal(code)
        request_id = uuid.uuid4().hex
        body = json.dumps({"error": {"code": code, "message": message, "param": None, "request_id": request_id}})
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[STATUS[code]] + head.encode() + body.encode())
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.head_timer = self.head_timer or self.loop.call_later(LINGER_S, self._head_timeout)
        else:
            self.transport.close()

    def _drain(self, size: int) -> None:
        self.drained_bytes += size
        if self.drained_bytes > LINGER_BYTES:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client takes bytes slower than they come."""
        super().pause_writing()
        if self.write_timer is None:
            self._arm_write_timer()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self.write_timer is not None:
            self.write_timer.cancel()
            self.write_timer = None

    def _arm_write_timer(self) -> None:
        left = self.transport.get_write_buffer_size()
        self.write_timer = self.loop.call_later(self.settings.write_timeout_s, self._write_timeout, left)

    def _write_timeout(self, left: int) -> None:
        """Drop a client that took nothing; one that took a little may go on."""
        self.write_timer = None
        if self.transport.get_write_buffer_size() < left:
            self._arm_write_timer()
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left. uvicorn tells only the last request of a pipeline; here all of them know."""
        for timer in (self.head_timer, self.write_timer):
            if timer is not None:
                timer.cancel()
        self.head_timer = self.write_timer = None
        for cycle in (self.running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)


class CloseDelimitedCycle(RequestResponseCycle):
    """An answer to HTTP/1.0, which knows no chunks: a body without a length ends with the connection."""

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI's send."""
        self.chunked_encoding = False
        if message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


def make_protocol(settings: Settings, count_refusal: Any) -> type[Protocol]:
    """A protocol class with its settings; uvicorn makes one object of it for each connection."""
    return type("FolioProtocol", (Protocol,), {"settings": settings, "count_refusal": staticmethod(count_refusal)})
