"""HTTP over sockets of our own, many at a time: requests that end where they are told to, and streams that are read event by event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from tests.support.events import event_of
from tests.support.server import Server
from tests.support.wait import LIMIT_S

RESET = struct.pack("ii", 1, 0)
OPEN: set[Exchange] = set()
"""Connections of the running test; what it leaves open is closed with it."""


@dataclass
class Read:
    """What has been read of one stream."""

    text: str = ""
    ids: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Of the text after each event."""
    end: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    whole: bool = True
    """Whether it is read from the first token on."""

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.error is not None

    def event(self, block: str) -> None:
        """Take one event."""
        found = event_of(block)
        if found is None:
            return
        assert not self.is_over, "an event after the end"
        data, name = found["data"], found.get("event")
        if name == "end":
            self.end = data
            assert self.text == data["text"] or not self.whole, "the joined stream differs from its end"
        elif name == "error":
            self.error = data
        else:
            self.text += data["text"]
            self.ids.append(found["id"])
            self.lengths.append(len(self.text))


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, server: Server, body: dict[str, Any], path: str = "/generate", headers: dict[str, str] | None = None) -> None:
        self.server, self.path = server, path
        self.fields = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close", **(headers or {})}
        self.data = json.dumps(body).encode()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.buffer = ""
        self.read = Read(whole="Last-Event-ID" not in self.fields)

    async def __aenter__(self) -> Exchange:
        """Sends the request and reads the answer's head."""
        try:
            await self.send()
            await self.head()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave with FIN, unless it is closed already."""
        OPEN.discard(self)
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def send(self, receive_buffer: int | None = None) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, (self.server.host, self.server.port))
        self.sock = sock
        limit = receive_buffer or 1 << 16
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=limit)
        OPEN.add(self)
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.fields.items())
        self.writer.write(f"POST {self.path} HTTP/1.1\r\n{lines}Content-Length: {len(self.data)}\r\n\r\n".encode() + self.data)

    async def head(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")[:-2]
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises IncompleteReadError when the connection ends before it does."""
        async with asyncio.timeout(LIMIT_S):
            if "content-length" in self.headers:
                yield await self.reader.readexactly(int(self.headers["content-length"]))
                return
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)

    async def body(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    async def json(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(await self.body())
        return body

    async def events(self) -> AsyncIterator[Read]:
        """What has been read, after each event or several."""
        async for part in self.parts():
            *blocks, self.buffer = (self.buffer + part.decode("ascii")).split("\n\n")
            for block in blocks:
                self.read.event(block)
            yield self.read

    async def finish(self) -> Read:
        """Read a stream to its end, of which there must be one."""
        async for _ in self.events():
            pass
        assert self.read.is_over, "the stream has no end"
        return self.read

    async def until(self, characters: int) -> Read:
        """Read until so much text has come, or the end."""
        async for read in self.events():
            if len(read.text) >= characters:
                break
        return self.read

    def reset(self) -> None:
        """Leave with RST."""
        sock = self.writer.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()


async def stream(server: Server, body: dict[str, Any], headers: dict[str, str] | None = None) -> Read:
    """A stream from its first event to its end."""
    async with Exchange(server, body, headers=headers) as exchange:
        assert exchange.status == 200, (exchange.status, await exchange.body())
        return await exchange.finish()


async def fetch(server: Server, body: dict[str, Any], path: str = "/generate") -> dict[str, Any]:
    """The JSON of an answer of 200."""
    async with Exchange(server, body, path) as exchange:
        answer = await exchange.json()
        assert exchange.status == 200, (exchange.status, answer)
        return answer


async def text_of(server: Server, body: dict[str, Any]) -> str:
    text: str = (await fetch(server, {**body, "stream": False}))["text"]
    return text


async def probe(server: Server, path: str) -> int:
    """The status of a GET, on a connection of its own."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(LIMIT_S):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        try:
            await work
        finally:
            for exchange in list(OPEN):
                await exchange.close()

    asyncio.run(main())


async def together(*works: Awaitable[Any]) -> list[Any]:
    """All results; the first failure is raised."""
    return list(await asyncio.gather(*works))
