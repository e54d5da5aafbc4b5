"""What Ray asks a replica, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service import cluster
from service.settings import Settings
from service.telemetry import logs
from tests.support.checkpoints import make_catalogue


async def asked(checkpoint: Path) -> cluster.Replica:
    """A replica whose first health check, which is a part of its start, has returned."""
    replica = cluster.Replica(Settings(checkpoint=checkpoint, threads=1))
    app = replica.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        assert replica.service.not_ready == "loading"
        await replica.check_health()
        assert replica.service.not_ready == ""
        again = replica.check_health()
        with pytest.raises(StopIteration):  # a coroutine that ends without having waited for anything
            again.send(None)
    return replica


def test_a_replica_gets_no_request_before_its_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "configure", lambda level: None)
    catalogue = make_catalogue(tmp_path)
    asyncio.run(asked(catalogue.path("a")))
    with pytest.raises(RuntimeError, match="damaged"):
        asyncio.run(asked(catalogue.path("damaged")))
