"""A client that leaves frees its row at once, streaming or not, running or queued, whatever else its connection carries."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable

import pytest

from tests.service.fakes import FakeEngine
from tests.service.running import Running, read_answer, request
from tests.support.wait import wait_for

Serve = Callable[..., Running]
LONG = {"prompt": "R", "max_new_tokens": 4096, "seed": 1}
SLOW_S = 0.02
"""Between chunks: a text of 4096 tokens takes twelve seconds, if nobody leaves."""
paths = pytest.mark.parametrize("path", ["/generate", "/v1/completions"])


def long_body(path: str, stream: bool) -> dict[str, object]:
    length = {"max_new_tokens": 4096} if path == "/generate" else {"max_tokens": 4096}
    return {"prompt": "R", "seed": 1, "stream": stream, **length}


def are_cut_short(server: Running) -> bool:
    """Whether every text ended before its length was reached."""
    return all(stream.generated < 4096 for stream in server.engine.submitted)


def reset(sock: socket.socket) -> None:
    """Leave with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@paths
@pytest.mark.parametrize(("stream", "leave"), [(True, reset), (True, socket.socket.close), (False, reset)])
def test_leaving_frees_the_row(serve: Serve, path: str, stream: bool, leave: Callable[[socket.socket], None]) -> None:
    """LESSONS 1, 2, 4: servers went on generating for clients that had left, most of all without streaming."""
    server = serve(FakeEngine(delay=SLOW_S))
    sock = server.connect()
    sock.sendall(request(long_body(path, stream), path))
    wait_for(lambda: server.engine.generated > 30)
    if stream:
        assert sock.recv(65536)
    leave(sock)
    wait_for(lambda: not server.engine.streams)
    generated = server.engine.generated
    wait_for(lambda: server.metric("folio_requests_cancelled_total", where="running") == 1)
    assert server.engine.generated <= generated + 7
    assert server.metric("folio_request_refused_total", code="internal_error") == 0


@paths
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_queued(serve: Serve, path: str, stream: bool) -> None:
    """LESSONS 5: what nobody waits for is never scheduled."""
    server = serve(FakeEngine(hold=asyncio.Event()))
    sock = server.connect()
    sock.sendall(request(long_body(path, stream), path))
    wait_for(lambda: server.engine.streams)
    sock.close()
    wait_for(lambda: not server.engine.streams)
    wait_for(lambda: server.metric("folio_requests_cancelled_total", where="queued") == 1)
    assert server.engine.generated == 0


def test_leaving_with_many_choices_frees_them_all(serve: Serve) -> None:
    server = serve(FakeEngine(delay=SLOW_S))
    sock = server.connect()
    sock.sendall(request({"prompt": ["a", "b"], "n": 8, "max_tokens": 4096}, "/v1/completions"))
    wait_for(lambda: len(server.engine.streams) == 16 and server.engine.generated)
    sock.close()
    wait_for(lambda: not server.engine.streams)
    assert are_cut_short(server)


def test_the_first_of_pipelined_requests_notices_too(serve: Serve) -> None:
    """uvicorn tells only the last request of a pipeline that the client has left."""
    server = serve(FakeEngine(delay=SLOW_S))
    sock = server.connect()
    sock.sendall(request(LONG) + request(LONG))
    wait_for(lambda: server.engine.generated > 30)
    reset(sock)
    wait_for(lambda: not server.engine.streams)
    assert are_cut_short(server)
    assert len(server.engine.submitted) == 1, "the second was never begun"


def test_half_close_counts_as_leaving(serve: Serve) -> None:
    """FIN is all that is seen of a client that has gone, so one that only ends its sending is not waited for either."""
    server = serve(FakeEngine(delay=SLOW_S))
    with server.connect() as sock:
        sock.sendall(request(LONG))
        wait_for(lambda: server.engine.streams)
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: not server.engine.streams)
    assert are_cut_short(server)


def test_leaving_within_the_body_starts_nothing(serve: Serve) -> None:
    server = serve()
    for data in (b"", b"POST /gen", request(LONG)[:-5]):
        sock = server.connect()
        sock.sendall(data)
        reset(sock)
    assert server.http.get("/healthz").status_code == 200
    assert not server.engine.submitted


def test_neighbours_of_those_who_leave_lose_nothing(serve: Serve) -> None:
    """LESSONS 3: one client's leaving stopped the answers of all."""
    server = serve(FakeEngine(delay=0.002))
    expected = server.post(prompt="R", max_new_tokens=300, seed=1, stream=False).json()["text"]
    for _ in range(3):
        socks = [server.connect() for _ in range(16)]
        for sock in socks:
            sock.sendall(request({"prompt": "R", "max_new_tokens": 300, "seed": 1, "stream": False}, extra="Connection: close\r\n"))
        wait_for(lambda: len(server.engine.streams) == 16)
        for sock in socks[::2]:
            reset(sock)
        for sock in socks[1::2]:
            assert json.loads(read_answer(sock).body)["text"] == expected
            sock.close()
        wait_for(lambda: not server.engine.streams)
    wait_for(lambda: server.metric("folio_requests_cancelled_total", where="running") >= 1)


def test_cancelling_counts_once_for_each_way_to_leave(serve: Serve) -> None:
    """Contexts are left even if the client goes between admission and the first byte."""
    server = serve(FakeEngine(hold=asyncio.Event()))
    base = server.tasks()
    socks = [server.connect() for _ in range(20)]
    for sock in socks:
        sock.sendall(request(LONG))
    wait_for(lambda: len(server.engine.streams) == 20)
    for sock in socks:
        reset(sock)
    wait_for(lambda: not server.engine.streams)
    wait_for(lambda: server.tasks() <= base)
    assert all(stream.cancelled for stream in server.engine.submitted)
