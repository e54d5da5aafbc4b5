"""Clients that send too much, too little, too slowly or do not read: each costs one connection and nothing else."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests.service.fakes import FakeEngine
from tests.service.running import Running, read_answer, request
from tests.support.events import events, joined
from tests.support.wait import wait_for

Serve = Callable[..., Running]
SHORT: dict[str, Any] = {"prompt": "R", "max_new_tokens": 10, "seed": 1}
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ended(sock: socket.socket) -> bool:
    """Whether the server has closed its side."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_body_that_is_too_large_is_refused_and_the_client_reads_why(shared: Running) -> None:
    """The answer comes at once; what is still being sent is drained, since a reset would destroy the answer."""
    data = json.dumps({"prompt": "a" * 5_000_000}).encode()
    with shared.connect() as sock:
        sock.sendall(request(data))
        answer = read_answer(sock)
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert ended(sock)
    assert shared.http.post("/generate", content=b"x" * 10_000_000).status_code == 413


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/healthz", "/nope"])
def test_chunks_without_end_are_refused(shared: Running, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with shared.connect() as sock:
        sock.sendall(head.encode())
        chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
        for _ in range(20):
            sock.sendall(chunk)
        answer = read_answer(sock)
        assert (answer.status, answer.code) == (413, "body_too_large")


def test_a_body_that_never_comes(serve: Serve) -> None:
    server = serve(request_timeout_s=0.2)
    answer = server.raw(request(SHORT)[:-5])
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"


def test_who_asks_first_is_refused_without_sending(serve: Serve) -> None:
    """``Expect: 100-continue`` with a body that is too large or a key that is missing: no 100, and no waiting for what never comes."""
    server = serve(api_keys="k")
    for authorization, status in (("", 401), ("Authorization: Bearer k\r\n", 413)):
        head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\n{authorization}Expect: 100-continue\r\nContent-Length: 9000000\r\n\r\n"
        with server.connect() as sock:
            sock.sendall(head.encode())
            assert read_answer(sock).status == status
            assert ended(sock)


def test_a_compressed_bomb_is_not_unpacked(shared: Running) -> None:
    import gzip

    answer = shared.raw(request(gzip.compress(b"a" * 10_000_000), extra="Content-Encoding: gzip\r\n"))
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "extra",
    [
        "X-Large: " + "a" * 20_000 + "\r\n",
        "Authorization: Bearer " + "k" * 1_000_000 + "\r\n",
        "".join(f"X-{i}: a\r\n" for i in range(10_000)),
    ],
)
def test_headers_too_large(shared: Running, extra: str) -> None:
    """LESSONS 46: one giant header exhausted memory."""
    answer = shared.raw(request(SHORT, extra=extra))
    assert (answer.status, answer.code) == (431, "headers_too_large")
    long_path = shared.raw(b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert long_path.status == 431


def test_a_header_without_end_is_cut_early(shared: Running) -> None:
    """A gigabyte is never taken: the answer comes after kilobytes, the connection ends after megabytes."""
    with shared.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        sent = 0
        try:
            while sent < 100 << 20:
                sent += sock.send(b"a" * 65536)
        except (ConnectionError, TimeoutError):
            pass
        assert sent < 32 << 20
    assert shared.http.get("/healthz").status_code == 200


def test_slow_headers_cost_one_connection(serve: Serve) -> None:
    """LESSONS 46: uvicorn has no limit on the time that headers take."""
    server = serve(request_timeout_s=0.3)
    with server.connect() as slow, server.connect() as silent, server.connect() as blank:
        slow.sendall(b"GET /healthz HT")
        while not select.select([slow], [], [], 0.05)[0]:  # until it is answered
            slow.sendall(b"X")
            with contextlib.suppress(ConnectionError):
                blank.sendall(b"\r\n")
        answer = read_answer(slow)
        assert (answer.status, answer.code) in ((408, "request_timeout"), (400, "invalid_http"))
        assert ended(silent)
        assert ended(blank)


def test_slow_headers_get_408(serve: Serve) -> None:
    server = serve(request_timeout_s=0.2)
    answer = server.raw(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert server.metric("folio_request_refused_total", code="request_timeout") == 1


def test_idle_connections_end(serve: Serve) -> None:
    server = serve(idle_timeout_s=1)
    with server.connect() as sock:
        sock.sendall(GET)
        assert read_answer(sock).status == 200
        start = time.monotonic()
        assert ended(sock)
        assert time.monotonic() - start > 0.5, "not at once"


def test_hundreds_of_idle_connections_bother_nobody(shared: Running) -> None:
    socks = [shared.connect() for _ in range(400)]
    try:
        assert shared.http.get("/healthz").status_code == 200
        assert shared.post(**SHORT, stream=False).status_code == 200
    finally:
        for sock in socks:
            sock.close()


def test_pipelined_requests_are_answered_in_order(shared: Running) -> None:
    ids = [f"id-{i}" for i in range(5)]
    data = b"".join(request({**SHORT, "stream": False, "seed": i}, extra=f"X-Request-Id: {id}\r\n") for i, id in enumerate(ids))
    with shared.connect() as sock:
        sock.sendall(data)
        rest = b""
        for id in ids:
            answer = read_answer(sock, rest)
            rest = answer.rest
            assert answer.headers["x-request-id"] == id
            assert json.loads(answer.body)["seed"] == ids.index(id)


def test_rubbish_behind_a_request_does_not_mix_with_its_answer(serve: Serve) -> None:
    """uvicorn wrote its 400 into the stream that was on its way."""
    server = serve(FakeEngine(delay=0.01))
    with server.connect() as sock:
        sock.sendall(request({**SHORT, "max_new_tokens": 100}) + b"\x00\x01rubbish\r\n\r\n")
        answer = read_answer(sock)
    assert answer.status == 200
    assert b"event: end" in answer.body
    assert b"HTTP/1.1 400" not in answer.body
    assert answer.body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0_gets_no_chunks(shared: Running, stream: bool) -> None:
    """nginx speaks 1.0 to the server behind it unless told otherwise. uvicorn would answer in chunks."""
    answer = shared.raw(request({**SHORT, "stream": stream}, version="1.0"))
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    expected = shared.post(**SHORT, stream=False).json()["text"]
    text = joined(events(answer.body.decode())) if stream else json.loads(answer.body)["text"]
    assert text == expected
    keep_alive = shared.raw(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert keep_alive.status == 200


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/models", "/info"])
def test_other_methods_are_405_and_name_the_right_one(shared: Running, method: str, path: str) -> None:
    answer = shared.http.request(method, path)
    if method == "HEAD" and path == "/generate":
        assert answer.status_code == 422, "an address without a prompt"
        return
    if method == "HEAD" and path in ("/v1/models", "/info"):
        assert answer.status_code == 200
        return
    assert answer.status_code == 405
    assert answer.headers["allow"] in ("GET, HEAD", "GET, HEAD, POST, QUERY", "POST")
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "method_not_allowed"


def test_head_is_get_without_a_body(shared: Running) -> None:
    """RFC 9110 §9.1: it was 405 on all but the probes."""
    paths = [r.path for r in shared.app.routes if isinstance(r, APIRoute) and "GET" in (r.methods or ()) and "{" not in r.path]
    assert {"/", "/info", "/metrics", "/docs", "/openapi.json", "/v1/models", "/healthz"} <= set(paths)
    for path in paths:
        get, head = (shared.http.request(method, path, headers={"Connection": "close"}) for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        with shared.connect() as sock:
            sock.sendall(GET.replace(b"GET /healthz", f"HEAD {path}".encode()) + request({}, "/nope", extra="Connection: close\r\n"))
            data = b"".join(iter(lambda: sock.recv(65536), b""))
        assert data.partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1 404"), "no byte of a body before the next answer"


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01", b"GET /\xff HTTP/1.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"\r\n\r\nxx\r\n\r\n"]
)
def test_what_is_not_http_is_refused_in_our_shape(shared: Running, data: bytes) -> None:
    answer = shared.raw(data)
    assert (answer.status, answer.code) == (400, "invalid_http")


def test_a_refused_post_keeps_its_connection(shared: Running) -> None:
    """The body of a request that was refused by its headers is drained, so the next request is not taken for its end."""
    with shared.connect() as sock:
        sock.sendall(request(SHORT, path="/nope"))
        assert read_answer(sock).status == 404
        sock.sendall(GET)
        assert read_answer(sock).status == 200


def test_a_reader_that_stops_is_dropped_and_its_row_freed(serve: Serve) -> None:
    """LESSONS 7, 31: ``drain()`` never returned for a client that had stopped reading."""
    server = serve(FakeEngine(burst=500), write_timeout_s=0.3, max_new_tokens=10_000_000)
    base = server.tasks()
    sock = server.connect(receive_buffer=4096)
    sock.sendall(request({**SHORT, "max_new_tokens": 200_000, "logprobs": True}))
    wait_for(lambda: server.engine.generated > 0)
    wait_for(lambda: not server.engine.streams)
    assert server.engine.generated < 100_000, "what nobody reads is not generated"
    wait_for(lambda: server.tasks() <= base)
    sock.close()


def test_a_slow_reader_gets_every_byte_and_slows_nobody(serve: Serve) -> None:
    server = serve(FakeEngine(burst=500), write_timeout_s=5)
    body: dict[str, Any] = {**SHORT, "max_new_tokens": 4000, "logprobs": True}
    expected = server.post(**body, stream=False).json()["text"]
    with server.connect(receive_buffer=4096) as sock:
        sock.sendall(request(body, extra="Connection: close\r\n", version="1.0"))
        data = b""
        while more := sock.recv(2048):
            data += more
            if len(data) < 100_000:
                time.sleep(0.001)
            if 50_000 < len(data) < 52_048:
                assert server.post(**SHORT, stream=False).status_code == 200
    assert joined(events(data.partition(b"\r\n\r\n")[2].decode())) == expected
