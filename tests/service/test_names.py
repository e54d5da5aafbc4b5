"""By which names and under which paths the service is asked, and what it tells those who need no key."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from service.api import pages
from tests.service.fakes import FakeEngine
from tests.service.running import Running

Serve = Callable[..., Running]


def ask(server: Running, host: str, path: str = "/info") -> int:
    return server.http.get(path, headers={"Host": host}).status_code


def test_a_loopback_server_without_keys_has_its_own_names_only(serve: Serve) -> None:
    """A page anywhere could let its name point to 127.0.0.1 and read what a private server said (DNS rebinding)."""
    server = serve()
    for host in ("localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "app.localhost", "localhost."):
        assert ask(server, host) == 200, host
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.1", ""):
        for path in ("/info", "/healthz", "/", "/nope"):
            assert ask(server, host, path) == 421, host
    answer = server.http.post("/generate", json={"prompt": "R"}, headers={"Host": "evil.example"}).json()["error"]
    assert (answer["code"], answer["param"]) == ("misdirected_request", "Host")
    assert "FOLIO_ALLOWED_HOSTS" in answer["message"]


def test_names_can_be_added_and_keys_make_them_needless(serve: Serve) -> None:
    named = serve(allowed_hosts="my.name, other.name")
    assert [ask(named, host) for host in ("My.Name:80", "other.name", "localhost", "evil.example")] == [200, 200, 200, 421]
    keyed = serve(api_keys="k")
    assert keyed.http.get("/info", headers={"Host": "any.name", "Authorization": "Bearer k"}).status_code == 200
    world = serve(host="0.0.0.0", allow_anonymous=True)
    assert ask(world, "any.name") == 200
    closed = serve(host="0.0.0.0", allow_anonymous=True, allowed_hosts="my.name")
    assert [ask(closed, host) for host in ("my.name", "any.name")] == [200, 421]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_two_colons_take_both_families(serve: Serve) -> None:
    """asyncio made a socket for IPv6 alone."""
    server = serve(host="::", allow_anonymous=True)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as sock:
            sock.connect((address, server.port))
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("prefix", ["", "/folio"])
def test_behind_a_proxy_under_a_path(serve: Serve, prefix: str) -> None:
    """Whether the proxy takes the prefix off or not."""
    server = serve(root_path="/folio/", api_keys="k")
    key = {"Authorization": "Bearer k"}
    assert server.http.get(f"{prefix}/healthz").status_code == 200
    assert server.http.post(f"{prefix}/generate", json={"prompt": "R", "stream": False}, headers=key).status_code == 200
    refused = server.http.post(f"{prefix}/v1/completions", json={"prompt": "R"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert server.http.get(f"{prefix}/admin/checkpoints", headers=key).status_code == 403
    assert server.http.get(f"{prefix}/openapi.json", headers=key).json()["servers"] == [{"url": "/folio"}]
    assert server.http.get(f"{prefix}/").status_code == 200


def test_the_page_asks_for_nothing_by_an_absolute_path() -> None:
    for path in pages.PLAYGROUND.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            found = re.findall(r"""(?:href=|src=|url\(|fetch\(|get\()["'`]/[^"'`]*""", path.read_text())
            assert not found, (path.name, found)


def test_every_file_of_the_page_is_there_and_no_other(shared: Running) -> None:
    files = {path.name for path in pages.PLAYGROUND.iterdir() if path.is_file() and path.suffix != ".py"}
    assert files == pages.PLAYGROUND_FILES
    for name in files:
        assert shared.http.get(f"/playground/{name}").status_code == 200


@pytest.mark.parametrize(
    "name", ["a" * 300, "%2f", "%2e%2e%2fapp.py", "%00", "index.html%00", "../" * 100 + "etc", "a/" * 100, "%ff", "%5c", "INDEX.HTML", ""]
)
def test_other_names_of_files_are_not_found(shared: Running, name: str) -> None:
    """The operating system's errors for them were 500, which raises an alert."""
    raw = f"GET /playground/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    answer = shared.raw(raw)
    assert (answer.status, answer.code) == (404, "not_found")
    assert shared.metric("folio_request_refused_total", code="internal_error") == 0


def test_probes_name_no_paths(serve: Serve) -> None:
    """They need no key; once the engine was given up, one of them showed where the checkpoint lies."""
    server = serve(FakeEngine(state="failed", message="/secret/checkpoint has changed"), api_keys="k")
    for path in ("/healthz", "/readyz"):
        answer = server.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
        assert "/secret" not in answer.text
    assert "/secret" in server.http.get("/info", headers={"Authorization": "Bearer k"}).text


def test_keep_alive_comments_are_one_line() -> None:
    """`httpx-sse`, openai-go and fetch-event-source took the empty line behind a comment for an event without data."""
    from service.http.sse import KEEP_ALIVE

    assert KEEP_ALIVE == b": keep-alive\n"


def test_the_manifests_need_no_name_that_a_user_would_have_to_know() -> None:
    text = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    assert "FOLIO_ALLOWED_HOSTS: ${FOLIO_ALLOWED_HOSTS-folio}" in text, "Prometheus asks for it, and a page of anybody's must not"
