"""Through a reverse proxy: nothing is collected on the way, whoever leaves has left, and a proxy's death cuts no text for good."""

from __future__ import annotations

import asyncio
import contextlib
import http.client as http_client
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from service.client import Folio
from service.client import stream as client_module
from tests.deployment.conftest import need
from tests.deployment.proxies import NGINX, Nginx, Proxy, connections_to
from tests.support.checkpoints import Catalogue
from tests.support.events import events, joined
from tests.support.server import Server, serve
from tests.support.wait import LIMIT_S, wait_for

pytestmark = pytest.mark.proxy

ENDLESS: dict[str, Any] = {"prompt": "a", "max_new_tokens": 1_000_000, "seed": 1}
BODY: dict[str, Any] = {"prompt": "abc", "max_new_tokens": 300, "seed": 5}
MIB = 1 << 20
SUCCESS = 'folio_request_success_total{finish_reason="length"}'


def open_stream(http: httpx.Client, **body: Any) -> contextlib.AbstractContextManager[httpx.Response]:
    return http.stream("POST", "/generate", json=body)


def curl_has_http_2() -> bool:
    curl = shutil.which("curl")
    return curl is not None and "HTTP2" in subprocess.run([curl, "--version"], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def occupied(server: Server) -> Iterator[Callable[[], None]]:
    """The only row is busy with a text that is answered as one JSON (a stream that nobody reads would be suspended), until it is freed."""
    connection = http_client.HTTPConnection(server.host, server.port, timeout=LIMIT_S)
    connection.request("POST", "/generate", json.dumps({**ENDLESS, "stream": False}), {"Content-Type": "application/json"})
    wait_for(lambda: server.busy == 1, "it has not begun")
    try:
        yield connection.close
    finally:
        connection.close()


def test_events_arrive_as_they_are_sent(server: Server, proxy: Proxy, http: httpx.Client) -> None:
    """While another text has the only row, one event and then a comment of 14 bytes at a time: no buffer would ever be full."""
    with occupied(server) as free, open_stream(http, **BODY, echo=True) as answer:
        assert answer.status_code == 200
        parts = answer.iter_raw()
        first = next(parts).decode()
        assert joined(events(first)) == "abc"
        assert [next(parts) for _ in range(3)] == [b": keep-alive\n\n"] * 3
        free()
        found = events(first + b"".join(parts).decode())
    end = found[-1]["data"]
    assert joined(found) == end["text"]
    assert end["text"] == server.text(**BODY, echo=True)


def test_a_long_text_comes_in_many_pieces(server: Server, proxy: Proxy, http: httpx.Client) -> None:
    """The first before the last is generated: of an endless text, and that while the service says that it goes on."""
    with open_stream(http, **ENDLESS) as answer:
        parts = answer.iter_raw()
        for _ in range(20):
            next(parts)
        assert server.busy == 1
    wait_for(lambda: server.busy == 0, "it still generates")


def test_headers_pass(server: Server, proxy: Proxy, http: httpx.Client) -> None:
    direct = server.post(**BODY)
    through = http.post("/generate", json=BODY, headers={"X-Request-Id": "mine-1"})
    for name in ("X-Seed", "X-Checkpoint", "X-Fingerprint", "Cache-Control", "Content-Type", "X-Content-Type-Options"):
        assert through.headers[name] == direct.headers[name], name
    assert through.headers["X-Request-Id"] == "mine-1"
    assert joined(events(through.text)) == joined(events(direct.text))


def test_a_client_that_leaves_frees_its_row(server: Server, proxy: Proxy, http: httpx.Client) -> None:
    """Streamed, and as one JSON, of which nothing has been sent yet."""
    before = server.num_cancelled
    with open_stream(http, **ENDLESS) as answer:
        parts = answer.iter_raw()
        next(parts)
        assert server.busy == 1
    wait_for(lambda: server.busy == 0, "its row is not free")
    assert server.num_cancelled == before + 1
    waiting = threading.Thread(target=leave_early, args=(http, {**ENDLESS, "stream": False}))
    waiting.start()
    wait_for(lambda: server.busy == 1, "it has not begun")
    waiting.join()
    wait_for(lambda: server.busy == 0, "its row is not free")
    assert server.num_cancelled == before + 2


def leave_early(http: httpx.Client, body: dict[str, Any]) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post("/generate", json=body, timeout=1.0)


def test_our_client_goes_on_after_the_proxy_was_killed(server: Server, proxy: Proxy) -> None:
    """``kill -9`` of the whole proxy in the midst of a text, three times; the reader sees one text."""
    body: dict[str, Any] = {"max_new_tokens": 20_000, "seed": 3}
    text, kills = "", 0
    with Folio(proxy.url) as folio:
        for piece in folio.stream("abc", **body):
            text += piece
            if len(text) > (kills + 1) * 3_000 and kills < 3:
                kills += 1
                proxy.kill()
                wait_for(lambda: server.busy == 0, "the service has not noticed")
                proxy.start()
    assert kills == 3
    assert text == server.text(prompt="abc", **body)


def test_our_client_goes_on_after_the_service_was_killed(catalogue: Catalogue, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile the proxy says that the service is away, and a client of ours takes that for a reason to wait."""
