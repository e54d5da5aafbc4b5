"""The file that a checkpoint's texts follow from: for whom, and for how long it may be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.service.fakes import FakeEngine, fake_checkpoint
from tests.service.running import Running

Serve = Callable[..., Running]
DATA = bytes(range(256)) * 40


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    (tmp_path / "model.safetensors").write_bytes(DATA)
    return FakeEngine(loaded=(replace(fake_checkpoint(), path=tmp_path),))


def path_of(engine: FakeEngine, name: str = "") -> str:
    return f"/v1/models/{name or engine.loaded[0].id}/weights"


def test_they_are_the_file_and_stay_for_ever(serve: Serve, engine: FakeEngine) -> None:
    server = serve(engine)
    answer = server.http.get(path_of(engine))
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["etag"] == '"00"'
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    again = server.http.get(path_of(engine), headers={"If-None-Match": '"00"'})
    assert (again.status_code, again.content) == (304, b"")
    assert server.http.head(path_of(engine)).headers["content-length"] == str(len(DATA))
    named = server.http.get(path_of(engine, "folio"))
    assert (named.content, named.headers["cache-control"]) == (DATA, "no-cache"), "a name may mean another checkpoint tomorrow"


def test_a_part_of_them_can_be_asked_for(serve: Serve, engine: FakeEngine) -> None:
    answer = serve(engine).http.get(path_of(engine), headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, DATA[10:20])


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {}, 200),
        ({"share_weights": False}, {}, 403),
        ({"api_keys": "k"}, {"Authorization": "Bearer k"}, 403),
        ({"api_keys": "k", "share_weights": True}, {"Authorization": "Bearer k"}, 200),
        ({"api_keys": "k", "share_weights": True}, {}, 401),
        ({"host": "0.0.0.0", "allow_anonymous": True}, {}, 403),
        ({"host": "0.0.0.0", "allow_anonymous": True, "share_weights": True}, {}, 200),
    ],
)
def test_who_gets_them(serve: Serve, engine: FakeEngine, settings: dict[str, object], headers: dict[str, str], status: int) -> None:
    """Whoever has the weights has the model: without a word from the operator only this machine's users get them."""
    answer = serve(engine, **settings).http.get(path_of(engine), headers=headers)
    assert answer.status_code == status
    if status == 200 and headers:
        assert answer.headers["cache-control"].startswith("private")
    if status == 403:
        assert "FOLIO_SHARE_WEIGHTS" in answer.json()["error"]["message"]


def test_what_is_not_there(serve: Serve, engine: FakeEngine, tmp_path: Path) -> None:
    server = serve(engine)
    assert server.http.get(path_of(engine, "gpt-4")).status_code == 404
    (tmp_path / "model.safetensors").unlink()
    gone = server.http.get(path_of(engine))
    assert gone.status_code == 404
    assert str(tmp_path) not in gone.text
