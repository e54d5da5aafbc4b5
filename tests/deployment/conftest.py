"""A service with a tiny model, and a proxy before it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

import httpx
import pytest

from tests.deployment.proxies import CADDY, NGINX, Caddy, Nginx, Proxy
from tests.e2e.conftest import catalogue, start
from tests.support.checkpoints import Catalogue
from tests.support.server import Server, serve
from tests.support.wait import LIMIT_S

__all__ = ["catalogue", "start"]
KEEP_ALIVE_S = 0.1


def need(program: str | None, name: str) -> None:
    """Skips the test without a program; on CI that is a failure."""
    if program is None:
        reason = f"there is no {name}: scripts/install-proxies brings it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="package")
def service(catalogue: Catalogue) -> Iterator[Server]:
    """One row, so that whatever comes second waits for as long as a test wants; no reader is so slow that it loses its row."""
    server = serve(catalogue, "--max-batch", "1", "--keep-alive-s", str(KEEP_ALIVE_S), "--stream-buffer-tokens", "1000000")
    yield server
    server.close()


@pytest.fixture
def server(service: Server) -> Server:
    """Idle at first."""
    assert service.busy == 0
    return service


@pytest.fixture(scope="package")
def the_nginx(service: Server) -> Iterator[Nginx]:
    need(NGINX, "nginx")
    proxy = Nginx(service.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="package")
def the_caddy(service: Server) -> Iterator[Caddy]:
    need(CADDY, "caddy")
    proxy = Caddy(service.port)
    yield proxy
    proxy.close()


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Each of the two; the clients of the test trust its certificate."""
    found: Proxy = request.getfixturevalue(f"the_{request.param}")
    trust(found, monkeypatch)
    return found


@pytest.fixture
def nginx(the_nginx: Nginx, server: Server, monkeypatch: pytest.MonkeyPatch) -> Nginx:
    trust(the_nginx, monkeypatch)
    return the_nginx


def trust(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user does for a private authority; and no other proxy on the way."""
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def http(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A client of the proxy that the test uses."""
    name = "proxy" if "proxy" in request.fixturenames else "nginx"
    found: Proxy = request.getfixturevalue(name)
    with httpx.Client(base_url=found.url, verify=ssl.create_default_context(cafile=found.authority), timeout=LIMIT_S) as client:
        yield client
