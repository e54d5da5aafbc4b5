"""The client: whatever happens to its connections, the pieces joined are the text."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from httpx_sse import ServerSentEvent

from service.client import AsyncFolio, Folio, FolioError, Stream, main
from service.client import stream_state as client_module
from service.client.race import Race
from tests.service.fakes import FakeEngine
from tests.service.running import Running
from tests.support.wait import wait_for

Serve = Callable[..., Running]
PARAMS: dict[str, Any] = {"max_new_tokens": 300, "seed": 7}


BAD_GATEWAY = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 21\r\nConnection: close\r\n\r\nInternal Server Error"


class CuttingProxy:
    """Hands on to a server, and cuts each connection after so many bytes of answer; where that is none, it says so itself."""

    def __init__(self, server: Running, limits: Iterator[int]) -> None:
        self.server, self.limits, self.connections = server, limits, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            with sock, self.server.connect() as upstream:
                self.connections += 1
                data = b""
                while not data.endswith((b"}", b"GET /\r\n\r\n")):  # httpx sends head and body apart
                    data += sock.recv(65536)
                upstream.sendall(data.replace(b"Connection: keep-alive", b"Connection: close"))
                left = next(self.limits)
                if left < 0:
                    return
                if left == 0:
                    sock.sendall(BAD_GATEWAY)
                try:
                    while left > 0 and (data := upstream.recv(min(left, 65536))):
                        sock.sendall(data)
                        left -= len(data)
                except (OSError, TimeoutError):
                    pass

    def close(self) -> None:
        self.limits = iter([-1])
        with socket.create_connection(self.listener.getsockname()) as last:
            last.sendall(b"GET /\r\n\r\n")
            self.thread.join(10)
        self.listener.close()


@pytest.fixture
def cut(shared: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    monkeypatch.setattr(Stream, "retry", quick(Stream.retry))
    proxy = CuttingProxy(shared, itertools.chain(range(700, 6000, 200), itertools.repeat(10**9)))
    yield proxy
    proxy.close()


def quick(retry: Callable[[Stream, Exception], float]) -> Callable[[Stream, Exception], float]:
    return lambda self, error: min(retry(self, error), 0.001)


def expected(server: Running) -> str:
    text: str = server.post(prompt="ROMEO:", **PARAMS, stream=False).json()["text"]
    return text


def test_whole_and_streamed(shared: Running) -> None:
    with Folio(shared.url) as folio:
        assert folio.generate("ROMEO:", **PARAMS)["text"] == expected(shared)
        pieces = list(folio.stream("ROMEO:", **PARAMS))
    assert "".join(pieces) == expected(shared)
    assert len(pieces) > 1


def test_resumes_after_every_cut(shared: Running, cut: CuttingProxy) -> None:
    """LESSONS 14: a network change lost the answer."""
    with Folio(cut.url) as folio:
        assert "".join(folio.stream("ROMEO:", **PARAMS)) == expected(shared)
        assert cut.connections > 5
        assert folio.generate("ROMEO:", **PARAMS, echo=True)["text"] == "ROMEO:" + expected(shared)


def test_a_proxy_that_finds_no_server_is_asked_again(shared: Running, cut: CuttingProxy) -> None:
    """Ray's proxy answers 500 in plain text for a replica that died before its answer began; it was taken for a refusal."""
    cut.limits = itertools.chain([0, 0, 900, 0], itertools.repeat(10**9))
    with Folio(cut.url) as folio:
        assert "".join(folio.stream("ROMEO:", **PARAMS)) == expected(shared)
    assert cut.connections == 5


def test_async_resumes_too(shared: Running, cut: CuttingProxy) -> None:
    async def main() -> str:
        async with AsyncFolio(cut.url) as folio:
            text = "".join([piece async for piece in folio.stream("ROMEO:", **PARAMS)])
            assert (await folio.generate("ROMEO:", **PARAMS))["text"] == text
            return text

    assert asyncio.run(main()) == expected(shared)
    assert cut.connections > 5


def test_a_retryable_error_event_is_resumed(serve: Serve) -> None:
    server = serve(FakeEngine())
    whole = expected(server)
    server.engine.fail_at = 140
    with Folio(server.url) as folio:
        pieces = folio.stream("ROMEO:", **PARAMS)
        text = "".join(next(pieces) for _ in range(20))
        threading.Timer(0.15, lambda: setattr(server.engine, "fail_at", None)).start()
        assert text + "".join(pieces) == whole


@pytest.mark.parametrize(
    ("params", "code"), [({"temperature": 9}, "invalid_request"), ({"seed": "x"}, "invalid_request"), ({"x": 1}, "unknown_field")]
)
def test_refusals_are_not_retried(shared: Running, params: dict[str, object], code: str) -> None:
    with Folio(shared.url) as folio, pytest.raises(FolioError) as error:
        folio.generate("ROMEO:", **params)
    assert (error.value.code, error.value.status) == (code, 422)


def test_a_full_queue_is_retried_until_there_is_room(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "retry", quick(Stream.retry))
    server = serve(FakeEngine(capacity=0))
    threading.Timer(0.01, lambda: setattr(server.engine, "capacity", 10)).start()
    monkeypatch.setattr(client_module, "MAX_ATTEMPTS", 1000)
    with Folio(server.url) as folio:
        assert folio.generate("ROMEO:", **PARAMS)["text"] == expected(server)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "retry", quick(Stream.retry))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Folio(f"http://127.0.0.1:{port}") as folio, pytest.raises(FolioError, match="connection"):
        folio.generate("x")


def test_leaving_a_stream_frees_its_row(serve: Serve) -> None:
    server = serve(FakeEngine(delay=0.005))
    with Folio(server.url) as folio:
        pieces = folio.stream("R", max_new_tokens=4000)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        wait_for(lambda: not server.engine.streams)


def test_a_missing_end_is_not_a_success() -> None:
    """LESSONS 20: a benchmark counted broken streams as answers."""
    stream = Stream({"prompt": "x"})
    assert stream.receive(ServerSentEvent(id="a.b.c.1", data='{"index": 1, "text": "a"}')) == "a"
    assert stream.reply is None
    assert stream.request["headers"] == {"Last-Event-ID": "a.b.c.1"}


def test_the_command(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve(api_keys="k")
    args = ["ROMEO:", "--max-new-tokens", "300", "--seed", "7", "--url", server.url]
    assert main([*args, "--api-key", "k"]) == 0
    headers = {"Authorization": "Bearer k"}
    text = server.post(prompt="ROMEO:", **PARAMS, stream=False, headers=headers).json()["text"]
    assert capfd.readouterr().out.replace("\r\n", "\n") == f"{text}\n".replace("\r\n", "\n")
    assert main(args) == 1
    assert "unauthorized" in capfd.readouterr().err


def test_two_replicas_are_raced_and_one_may_die(serve: Serve, cut: CuttingProxy) -> None:
    """Both say the same, so whichever is ahead is taken; the pieces join to the text however the lead changes."""
    slow, fast = serve(FakeEngine(delay=0.01, burst=3)), serve(FakeEngine(delay=0.005, burst=11))
    with Folio(slow.url) as folio:
        expected = folio.generate("ROMEO:", max_new_tokens=200, seed=7)["text"]
    replicas = [slow.url, fast.url]
    with Folio(urls=replicas) as folio:
        assert "".join(folio.stream("ROMEO:", max_new_tokens=200, seed=7)) == expected
        assert folio.generate("ROMEO:", max_new_tokens=200, seed=7)["text"] == expected

    async def raced(urls: list[str]) -> str:
        async with AsyncFolio(urls=urls) as folio:
            return "".join([text async for text in folio.stream("ROMEO:", max_new_tokens=200, seed=7)])

    assert asyncio.run(raced(replicas)) == expected
    failing = serve(FakeEngine(fail_at=20, failure=RuntimeError("broken on purpose")))
    assert asyncio.run(raced([failing.url, slow.url])) == expected
    with pytest.raises(FolioError, match="internal_error"):
        asyncio.run(raced([failing.url, failing.url]))


def test_replicas_that_differ_are_told_apart() -> None:
    race = Race(2)
    assert race.add(0, "To be") + race.add(1, "To be, o") == "To be, o"
    with pytest.raises(FolioError, match="replicas_differ"):
        race.add(0, "; o")
