"""HTTP/1 on a socket: uvicorn's protocol, and the limits that it leaves to others.

What no ASGI layer can see is bounded here: heads and trailers that never end, clients that take no byte, connections that send
nothing. Each costs its own connection and nothing else. Every limit comes from `service.settings`. One subclass on the version that
pyproject.toml pins; `tests/service/test_protocol.py` holds what it relies on.
"""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import Callable

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import STATUS
from service.http.linger import LINGER_BYTES, LINGER_S, CloseDelimited, CutOff
from service.http.request_head import HeadError, check_head, check_upgrade, without_upgrade
from service.settings import Settings

WRITE_BUFFER_BYTES = 32 << 10
SOCKET_BUFFER_BYTES = 128 << 10
"""A slow reader's cost: the kernel would grow its buffer to megabytes of text that is generated for nobody."""
CHUNK_FRAME_BYTES = 16
"""What a piece of a body may have around it: the size of its chunk and two line ends."""


class Protocol(HttpToolsProtocol):
    """One connection. ``make_protocol`` gives it the settings."""

    settings: Settings
    count_refusal: Callable[[str], None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; its first request must come in time."""
        super().connection_made(transport)
        self.running: RequestResponseCycle | None = None
        self.in_head = False
        self.other_bytes = 0  # all but bodies, since the last head or message was complete
        self.upgrading = False  # between a head that offers another protocol and the same head without the offer
        self.refused = False
        self.drained_bytes = 0
        self.head_timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if (sock := transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._arm_head_timer()

    # ---- bytes in -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, parsed in slices so that no more than the limit can hide behind what is counted last."""
        self._unset_keepalive_if_required()
        if self.head_timer is None and self._idle:
            self._arm_head_timer()
        limit = self.settings.max_header_bytes
        for first in range(0, len(data), limit):
            part = data[first : first + limit] if len(data) > limit else data
            if self.transport.is_closing():
                return
            if self.refused:
                self._drain(len(part))
                continue
            self.other_bytes += len(part)
            self._parse(part)
            if self.other_bytes > 2 * limit and not self.refused:  # up to one limit more may belong to what came before
                self._refuse_or_end("headers_too_large", f"what is not a body has more than {limit} bytes")

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = without_upgrade(self.parser.get_method(), self.url, self.headers)
            self.upgrading = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self._parse(head + data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            reason = error.__context__
            self._refuse_or_end("invalid_http", str(reason) if isinstance(reason, HeadError) else "the request is not valid HTTP/1.1")

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self.in_head = True
        if self.head_timer is None:
            self._arm_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. Trailers are none: they would change what was decided by the head (RFC 9110 §6.5.1)."""
        if self.in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's head is here; it is answered when those before it are. Raises HeadError, through the parser."""
        self.other_bytes = 0
        if self.parser.should_upgrade():
            check_upgrade(self.parser.get_method(), self.headers)
            self.upgrading = True  # the parser stops here and says where; `_parse` goes on without the offer
            return
        check_head(self.parser.get_http_version(), self.headers)
        self.in_head = False
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body, which the layers count."""
        self.other_bytes = max(0, self.other_bytes - len(body) - CHUNK_FRAME_BYTES)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's last byte."""
        if not self.upgrading:
            self.other_bytes = 0
            super().on_message_complete()

    # ---- refusals -----------------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.running is None or self.running.response_complete

    def _arm_head_timer(self) -> None:
        self.head_timer = self.loop.call_later(self.settings.request_timeout_s, self._head_timeout)

    def _head_timeout(self) -> None:
        self.head_timer = None
        if not self._idle:
            self._arm_head_timer()  # an answer is on its way; what is half sent behind it can wait
        elif self.in_head and not self.refused:
            self._refuse("request_timeout", f"the headers did not arrive within {self.settings.request_timeout_s:g} s")
        else:
            self.transport.close()

    def _refuse_or_end(self, code: str, message: str) -> None:
        """Refuse what cannot be parsed; behind an answer on its way only end the connection, since two would mix."""
        cycle = self.running
        if cycle is not None and cycle is self.cycle and cycle.more_body and not cycle.response_started:
            cycle.disconnected = True  # the application learns no more of the request that broke off
            cycle.message_event.set()
            self.running = None
        if self._idle:
            self._refuse(code, message)
        else:
            self.refused = True
            self.cycle.keep_alive = False

    def _refuse(self, code: str, message: str) -> None:
        """Answer without a route, end our side, let the client finish: closing at once could destroy the answer."""
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

    # ---- bytes out ----------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        cut = CutOff(app, cycle)
        super()._start_asgi_task(cycle, CloseDelimited(cut, cycle) if cycle.scope["http_version"] == "1.0" else cut)

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


def make_protocol(settings: Settings, count_refusal: Callable[[str], None]) -> type[Protocol]:
    """A protocol class with its settings; uvicorn makes one object of it for each connection."""
    return type("FolioProtocol", (Protocol,), {"settings": settings, "count_refusal": staticmethod(count_refusal)})
