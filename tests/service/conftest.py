"""A real uvicorn on a real socket for every test that is about HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.service.running import Running


@pytest.fixture(autouse=True)
def _no_folio_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on the variables of whoever runs them."""
    import os

    for name in os.environ:
        if name.startswith("FOLIO_") or name == "WEB_CONCURRENCY":
            monkeypatch.delenv(name)


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Starts servers: ``serve(FakeEngine(...), api_keys="k")``; they end with the test."""
    servers: list[Running] = []

    def start(*args: object, **settings: object) -> Running:
        servers.append(Running(*args, **settings))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One server for all tests of a module that leave it as they found it."""
    server = Running()
    yield server
    server.stop()
