"""uvicorn with our protocol and our way to end: keep answering while the running texts finish, then leave with 0."""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.background import Background
from service.http.protocol import make_protocol
from service.settings import Settings
from service.state import Service

FLUSH_S = 5
"""Time for the last bytes of ended streams to be taken."""
FORCED_CLOSE_S = 1.0
POLL_S = 0.05
BACKLOG = 2048


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the application."""
    service: Service = app.state.service
    return uvicorn.Config(
        app,
        host=settings.host.strip("[]"),
        port=settings.port,
        backlog=BACKLOG,
        http=make_protocol(settings, lambda code: service.metrics.refused.labels(code).inc()),
        ws="none",
        loop="uvloop",
        lifespan="on",
        workers=1,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(max(1, settings.idle_timeout_s)),
        timeout_graceful_shutdown=FLUSH_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


def listening_sockets(settings: Settings) -> list[socket.socket] | None:
    """A socket for ``::`` that takes IPv4 too, as asyncio's own would not; None for other addresses. Raises OSError."""
    if settings.host.strip("[]") != "::" or not socket.has_dualstack_ipv6():
        return None
    return [socket.create_server(("::", settings.port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)]


class Server(uvicorn.Server):
    """SIGTERM or SIGINT: not ready, new requests get 503, running ones have their grace. A second SIGINT ends at once."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(server_config(app, settings))
        self.service: Service = app.state.service
        self.settings = settings

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """From start to end. Raises OSError when it cannot listen there, TimeoutError when the end was forced."""
        await super().serve(sockets or listening_sockets(self.settings))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. uvicorn would raise it again at the end, so that a graceful end would look like a death."""
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.should_exit = True
        self.service.draining = True

    async def shutdown(self, sockets: object = None) -> None:
        """Drain with the listener open, since a refused connection tells a client less than 503 does; then end."""
        self.service.draining = True
        background = Background()
        drain = background.start("drain", self.service.engine.drain(self.settings.grace_s))
        while not drain.done() and not self.force_exit:
            await asyncio.wait((drain,), timeout=POLL_S)
        if self.force_exit:
            await background.close()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown()
        if self.force_exit:
            async with asyncio.timeout(FORCED_CLOSE_S):
                await self.service.engine.close()

    @property
    def address(self) -> str:
        """Where the service answers."""
        port = self.servers[0].sockets[0].getsockname()[1]
        host = f"[{self.settings.host.strip('[]')}]" if ":" in self.settings.host else self.settings.host
        return f"{'https' if self.settings.tls_cert else 'http'}://{host}:{port}"
