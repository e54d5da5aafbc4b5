"""A service in a thread, and raw requests over a socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import uvloop

from service.app import create_app
from service.http.server import Server
from service.settings import Settings
from tests.service.fakes import FakeEngine
from tests.support.wait import LIMIT_S, wait_for

JSON = {"Content-Type": "application/json"}


class Running:
    """A service on a free port of this machine, with a fake engine."""

    def __init__(self, engine: FakeEngine | None = None, **settings: Any) -> None:
        self.engine = engine or FakeEngine()
        self.settings = Settings(**{"port": 0, "grace_s": 0.2, **settings})
        self.app = create_app(self.settings, self.engine)
        self.server = Server(self.app, self.settings)
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        wait_for(lambda: self.server.started)
        self.host, self.port = "127.0.0.1", self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://{self.host}:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=LIMIT_S, trust_env=False)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.server.serve())

    def stop(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        assert self.engine.closed

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Run something on the server's loop."""
        self.loop.call_soon_threadsafe(function, *args)

    def tasks(self) -> int:
        """How many tasks the server's loop has."""
        count = asyncio.run_coroutine_threadsafe(count_tasks(), self.loop)
        return count.result(LIMIT_S)

    def post(self, path: str = "/generate", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value; 0 if there is none."""
        value = self.app.state.service.metrics.registry.get_sample_value(name, labels)
        return value or 0.0

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(LIMIT_S)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect((self.host, self.port))
        return sock

    def raw(self, data: bytes) -> Answer:
        """What the server answers to these bytes, read until it closes or the answer is whole."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_answer(sock)


async def count_tasks() -> int:
    return len(asyncio.all_tasks())


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""

    @property
    def code(self) -> str:
        error: dict[str, str] = json.loads(self.body)["error"]
        return error["code"]


def read_answer(sock: socket.socket, data: bytes = b"") -> Answer:
    """One response from a socket; ``rest`` is what came after it."""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        assert more, f"the connection ended within the headers: {data!r}"
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if "content-length" in headers:
        length = int(headers["content-length"])
        while len(body) < length:
            more = sock.recv(65536)
            assert more, "the connection ended within the body"
            body += more
        return Answer(int(status_line.split()[1]), headers, body[:length], body[length:])
    while more := sock.recv(65536):
        body += more
    return Answer(int(status_line.split()[1]), headers, body)


def request(body: object, path: str = "/generate", version: str = "1.1", extra: str = "", method: str = "POST") -> bytes:
    """A request's bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
    )
    return head.encode("latin-1") + data
