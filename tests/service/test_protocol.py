"""HTTP/1 as RFC 9112 has it, and no byte of it without a bound: raw sockets against a real server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from tests.service.fakes import FakeEngine
from tests.service.running import Running, read_answer, request
from tests.support.wait import wait_for

Serve = Callable[..., Running]
SHORT = {"prompt": "R", "max_new_tokens": 10, "seed": 1}
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
FLOOD = b"a" * 65536
ENOUGH = 64 << 20


def flood(sock: socket.socket, data: bytes = FLOOD) -> int:
    """Send until the server ends the connection; how many bytes it took until then."""
    sent = 0
    try:
        while sent < ENOUGH:
            sent += sock.send(data)
    except (ConnectionError, TimeoutError):
        pass
    return sent


# Everything that is no body


def test_trailers_without_end_are_refused(shared: Running) -> None:
    """They counted as a body that never ended: eight such connections took 400 MB, and every answer 10 s."""
    for path in (b"/healthz", b"/nope"):
        with shared.connect() as sock:
            sock.sendall(b"GET %b HTTP/1.1\r\n%b\r\n0\r\nX: " % (path, CHUNKED))
            assert flood(sock) < ENOUGH / 2
    with shared.connect() as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\n%b\r\n0\r\nX: %b" % (CHUNKED, FLOOD))
        answer = read_answer(sock)
        assert (answer.status, answer.code) == (431, "headers_too_large")


def test_a_head_behind_a_running_answer_is_bounded_too(serve: Serve) -> None:
    server = serve(FakeEngine(delay=0.01))
    for head in (b"GET / HTTP/1.1\r\nX: ", b"\r\n" * 65536):
        with server.connect() as sock:
            sock.sendall(request({**SHORT, "max_new_tokens": 4000}) + head)
            wait_for(lambda: server.engine.streams)
            assert flood(sock) < ENOUGH / 2
        wait_for(lambda: not server.engine.streams)


@pytest.mark.parametrize(
    "flooded",
    [
        b"\r\n" * 32768,
        b"GET /healthz?" + FLOOD,
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 10_000,
        b"POST /generate HTTP/1.1\r\n" + CHUNKED + b"\r\n1;" + FLOOD,
        b"POST /generate HTTP/1.1\r\n" + CHUNKED + b"\r\n" + b"1;extension=of-twenty\r\na\r\n" * 10_000,
    ],
    ids=["empty lines", "target", "headers", "chunk extension", "chunk extensions"],
)
def test_what_is_no_body_is_bounded(shared: Running, flooded: bytes) -> None:
    answer = shared.raw(flooded)
    assert (answer.status, answer.code) == (431, "headers_too_large")


def test_a_body_in_the_smallest_chunks_is_taken(shared: Running) -> None:
    """The frames of chunks are no body either, and a client that writes JSON token by token sends many."""
    body = json.dumps({**SHORT, "prompt": "R" * 20_000, "stream": False}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    answer = shared.raw(b"POST /generate HTTP/1.1\r\n%b\r\n%b0\r\n\r\n" % (CHUNKED, chunks))
    assert answer.status == 200


def test_trailers_are_dropped(shared: Running) -> None:
    """RFC 9110 §6.5.1: merged into the headers they changed the form of the answer, and resumed another stream."""
    body = json.dumps({**SHORT}).encode()
    trailers = b"Accept: application/json\r\nContent-Type: text/plain\r\nLast-Event-ID: nonsense\r\nX-Request-Id: late\r\n"
    data = b"POST /generate HTTP/1.1\r\n%b\r\n%x\r\n%b\r\n0\r\n%b\r\n" % (CHUNKED, len(body), body, trailers)
    with shared.connect() as sock:
        sock.sendall(data + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answer = read_answer(sock)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.headers["x-request-id"] != "late"
    assert b"event: end" in answer.body
    assert b"HTTP/1.1 200 OK" in answer.body, "the connection goes on behind the trailers"


# Heads


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a b\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a/b\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: user@x\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost:port\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: [::1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: \xe9\r\n",
        b"GET /healthz HTTP/1.0\r\nHost: localhost\r\nHost: y\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n",
        b"GET /healthz HTTP/0.9\r\nHost: localhost\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTE: gzip, chunked\r\n",
        b"GET /healthz HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: localhost:80\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n",
    ],
)
def test_a_head_that_is_not_http_1_1_is_refused(shared: Running, head: bytes) -> None:
    """RFC 9112 §3.2 and its neighbours; all of them were 200."""
    answer = shared.raw(head + b"\r\n")
    assert (answer.status, answer.code) == (400, "invalid_http")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("host", ["x", "localhost:8000", "[::1]:8000", "127.0.0.1", "a.b-c_d.example:", "", "a%2Db"])
def test_every_valid_host_is_taken(shared: Running, host: str) -> None:
    """Whether it is one of the server's is another question: 421."""
    assert shared.raw(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status in (200, 421)


def test_http_1_0_needs_no_host(shared: Running) -> None:
    assert shared.raw(b"GET /healthz HTTP/1.0\r\n\r\n").status == 200


# Upgrades


@pytest.mark.parametrize("extra", ["", "Expect: 100-continue\r\n"])
@pytest.mark.parametrize("split", [0, 20, 150, -3])
def test_an_offer_of_http_2_is_ignored_and_the_body_is_read(shared: Running, split: int, extra: str) -> None:
    """Java's HttpClient sends it on every first POST, ``curl --http2`` on each: 400, since the parser had lost the body."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    data = request({**SHORT, "stream": False}, extra=offer + extra)
    with shared.connect() as sock:
        sock.sendall(data[:split])
        sock.sendall(data[split:] + GET)
        interim = b"HTTP/1.1 100 Continue\r\n\r\n" if extra else b""
        assert sock.recv(len(interim), socket.MSG_WAITALL) == interim
        answer = read_answer(sock)
        assert (answer.status, json.loads(answer.body)["seed"]) == (200, 1)
        assert read_answer(sock, answer.rest).status == 200, "the connection goes on"


def test_an_upgrade_without_a_body_or_in_chunks(shared: Running) -> None:
    offer = b"Connection: keep-alive, upgrade\r\nUpgrade: h2c\r\n"
    assert shared.raw(GET[:-2] + offer + b"\r\n").status == 200
    body = json.dumps({**SHORT, "stream": False}).encode()
    data = b"POST /generate HTTP/1.1\r\n%b%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (CHUNKED, offer, len(body), body)
    assert json.loads(shared.raw(data).body)["seed"] == 1


def test_offers_without_end_are_bounded(shared: Running) -> None:
    """Each begins a new parser; what they have in common is the connection's limit for each head."""
    offer = b"GET /nope HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    answer = shared.raw(offer + b"X: " + FLOOD)
    assert (answer.status, answer.code) == (431, "headers_too_large")


# What it relies on


def test_uvicorn_still_has_what_the_protocol_overrides() -> None:
    """A method that uvicorn renames would be overridden in vain, and its limit silently gone."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

    from service.http.protocol import Protocol

    ours = {"data_received", "on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete"}
    ours |= {"_start_asgi_task", "_unset_keepalive_if_required", "pause_writing", "resume_writing", "connection_lost"}
    for name in ours:
        assert callable(getattr(HttpToolsProtocol, name))
    overridden = {name for name in vars(Protocol) if name in dir(HttpToolsProtocol) and callable(getattr(Protocol, name))}
    assert {name for name in overridden if not name.startswith("__")} <= ours | {"connection_made"}
    attributes = {"chunked_encoding", "expected_content_length", "disconnected", "message_event", "more_body", "keep_alive"}
    assert attributes <= set(RequestResponseCycle.__init__.__code__.co_names)
