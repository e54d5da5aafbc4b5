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
from service.client import stream_state as client_module
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
        assert [next(parts) for _ in range(3)] == [b": keep-alive\n"] * 3
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
    monkeypatch.setattr(client_module, "MAX_ATTEMPTS", 1_000)
    body: dict[str, Any] = {"max_new_tokens": 20_000, "seed": 3}
    first = serve(catalogue)
    own = type(proxy)(first.port)
    monkeypatch.setenv("SSL_CERT_FILE", str(own.authority))
    servers = [first]
    start = threading.Thread(target=lambda: servers.append(serve(catalogue, "--port", str(first.port))))
    try:
        text = ""
        with Folio(own.url) as folio:
            for piece in folio.stream("abc", **body):
                text += piece
                if len(text) > 3_000 and first.process.poll() is None:
                    first.process.kill()
                    first.wait()
                    check_away(own)
                    start.start()
        start.join()
        assert text == servers[-1].text(prompt="abc", **body)
    finally:
        if start.ident:
            start.join()
        own.close()
        for server in servers:
            server.close()


def check_away(proxy: Proxy) -> None:
    answer = httpx.post(f"{proxy.url}/generate", json=BODY, timeout=LIMIT_S)
    if isinstance(proxy, Nginx):
        assert (answer.status_code, answer.json()["error"]["code"], answer.headers["Retry-After"]) == (503, "loading", "1")
    else:
        assert answer.status_code == 502


def test_an_upgrade_behind_nginx_cuts_nothing(catalogue: Catalogue) -> None:
    """As docs/deployment.md tells it: start the new service beside the old one, reload nginx, end the old one."""
    need(NGINX, "nginx")
    body: dict[str, Any] = {"prompt": "abc", "max_new_tokens": 60_000, "seed": 3}
    old, new = serve(catalogue, "--grace-s", "120"), serve(catalogue)
    nginx = Nginx(old.port)
    try:
        workers = nginx.workers()
        context = ssl.create_default_context(cafile=nginx.authority)
        with httpx.Client(base_url=nginx.url, verify=context, timeout=LIMIT_S) as http, open_stream(http, **body) as answer:
            parts = answer.iter_text()
            text = next(parts)
            nginx.move(old.port, new.port)
            ask = partial(httpx.post, f"{nginx.url}/generate", json=BODY, timeout=LIMIT_S, verify=context)
            wait_for(lambda: ask().status_code == 200 and new.metrics()[SUCCESS], "the new service gets nothing")
            assert old.busy == 1
            old.process.terminate()
            text += "".join(parts)
        found = events(text)
        assert joined(found) == found[-1]["data"]["text"]
        assert found[-1]["data"]["finish_reason"] == "length"
        assert old.wait() == 0
        wait_for(lambda: not nginx.workers() & workers, "the old worker has not gone")
    finally:
        nginx.close()
        old.close()
        new.close()


@pytest.mark.parametrize(("size", "status"), [(MIB, 200), (MIB + 1, 413)])
def test_body_limits_agree(server: Server, proxy: Proxy, http: httpx.Client, size: int, status: int) -> None:
    body = json.dumps({**BODY, "stream": False}).encode()
    body += b" " * (size - len(body))
    for client in (server.http, http):
        answer = client.post("/generate", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["code"] == "body_too_large"


def test_no_address_counts_but_the_proxys_own(server: Server, nginx: Nginx, http: httpx.Client) -> None:
    """``X-Forwarded-For`` is believed by nobody: it reaches no log. nginx's log has the true address beside the request's id."""
    answer = http.post("/generate", json={**BODY, "stream": False}, headers={"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "who-1"})
    assert answer.status_code == 200
    log = nginx.directory / "folio.log"
    wait_for(lambda: " who-1\n" in log.read_text(), "nginx has not logged it")
    (line,) = [line for line in log.read_text().splitlines() if line.endswith(" who-1")]
    assert line.startswith("127.0.0.1 [")
    wait_for(lambda: '"request_id": "who-1"' in server.logged(), "the service has not logged it")
    assert "203.0.113.9" not in log.read_text() + server.logged()


def test_a_forged_address_is_no_way_round_a_limit(catalogue: Catalogue, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys all share one bucket, whatever address they claim to come from."""
    limited = serve(catalogue, "--rate-limit", "0.001", "--rate-burst", "2")
    own = type(proxy)(limited.port)
    try:
        verify = ssl.create_default_context(cafile=own.authority)
        with httpx.Client(base_url=own.url, verify=verify, timeout=LIMIT_S) as client:
            answers = [client.post("/generate", json=BODY, headers={"X-Forwarded-For": f"203.0.113.{n}"}) for n in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
    finally:
        own.close()
        limited.close()


def test_connections_to_the_service_are_kept(server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty clients, one after the other, and one connection behind them, or a few: Caddy dials while the last is being handed back."""
    others, seen = connections_to(server.port), set[int]()
    own = type(proxy)(server.port)
    try:
        monkeypatch.setenv("SSL_CERT_FILE", str(own.authority))
        for number in range(20):
            answer = httpx.post(f"{own.url}/generate", json={**BODY, "stream": number % 2 == 0}, timeout=LIMIT_S)
            assert answer.status_code == 200
            seen |= connections_to(server.port) - others
        assert 1 <= len(seen) <= (1 if isinstance(own, Nginx) else 10)
        assert connections_to(server.port) & seen
    finally:
        own.close()


def test_operators_routes_are_closed(server: Server, proxy: Proxy, http: httpx.Client) -> None:
    assert server.http.get("/metrics").status_code == 200
    for path in ("/metrics", "/admin/checkpoints", "/admin/promote"):
        assert http.get(path).status_code == 404, path
    for path in ("/", "/healthz", "/readyz", "/info", "/v1/models", "/docs"):
        assert http.get(path).status_code == 200, path


def test_http_leads_to_https(server: Server, nginx: Nginx, http: httpx.Client) -> None:
    answer = httpx.get(f"http://127.0.0.1:{nginx.http_port}/info?x=1", headers={"Host": "folio.example.com"})
    assert (answer.status_code, answer.headers["Location"]) == (308, "https://folio.example.com/info?x=1")
    assert http.get("/healthz").headers["Strict-Transport-Security"] == "max-age=31536000"


def test_one_address_has_so_many_at_once(server: Server, nginx: Nginx) -> None:
    """The hundred-and-first gets 429, in our words; the others wait on."""
    context = ssl.create_default_context(cafile=nginx.authority)
    body = json.dumps(ENDLESS).encode()
    request = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )

    async def ask() -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port, ssl=context, server_hostname="localhost")
        writer.write(request + body)
        async with asyncio.timeout(LIMIT_S):
            return await reader.readline(), reader, writer

    async def work() -> None:
        asked = await asyncio.gather(*(ask() for _ in range(100)))
        line, reader, writer = await ask()
        rest = await reader.read() if line.split()[1] == b"429" else b""
        for _, _, each in [*asked, (line, reader, writer)]:
            each.transport.abort()
        assert {line for line, _, _ in asked} == {b"HTTP/1.1 200 OK\r\n"}
        assert line == b"HTTP/1.1 429 Too Many Requests\r\n"
        assert b"Retry-After: 1\r\n" in rest
        assert b'"rate_limited"' in rest

    asyncio.run(work())
    wait_for(lambda: server.busy == 0, "rows are not free")


@pytest.mark.skipif(not curl_has_http_2(), reason="needs curl with HTTP/2")
def test_http_2(server: Server, proxy: Proxy) -> None:
    """What browsers speak to a proxy: the same text, and a reset stream that frees its row."""
    command = ["curl", "-sN", "--http2", "--cacert", str(proxy.authority), f"{proxy.url}/generate", "-H", "Content-Type: application/json"]
    once = [*command, "-w", "%{stderr}%{http_version}", "-d", json.dumps(BODY)]
    done = subprocess.run(once, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stderr == "2"
    assert joined(events(done.stdout)) == server.text(**BODY)
    with subprocess.Popen([*command, "-d", json.dumps(ENDLESS)], stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        assert curl.stdout.read(1)
        assert server.busy == 1
        curl.kill()
    wait_for(lambda: server.busy == 0, "its row is not free")
