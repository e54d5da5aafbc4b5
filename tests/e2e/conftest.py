"""One real server for all tests that leave it as they found it; others start their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.checkpoints import Catalogue, make_catalogue
from tests.support.server import Server, serve

Start = Callable[..., Server]


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make_catalogue(tmp_path_factory.mktemp("catalogue"))


@pytest.fixture(scope="session")
def session_server(catalogue: Catalogue) -> Iterator[Server]:
    server = serve(catalogue)
    yield server
    assert server.end() == 0
    assert not server.group()
    server.close()


@pytest.fixture
def server(session_server: Server) -> Server:
    """Idle at first, and again at the end."""
    assert session_server.busy == 0
    return session_server


@pytest.fixture
def start(catalogue: Catalogue) -> Iterator[Start]:
    """``start("--max-queue", "4")``: a server of one's own, which ends with the test."""
    servers: list[Server] = []

    def begin(*flags: str, **options: object) -> Server:
        servers.append(serve(catalogue, *flags, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield begin
    for server in servers:
        server.close()
