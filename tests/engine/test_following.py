"""A training run that is followed: whatever it leaves at ``best``, the service goes on, and says why it did not promote it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.manifest import MAX_MANIFEST_BYTES, read_manifest
from service.engine import rollout
from service.engine.interface import EngineOptions
from service.engine.pinned import PinnedCheckpoints
from tests.engine.engines import current, read, request, run, running, until, worker_pid
from tests.engine.test_promotion import catalogue

__all__ = ["catalogue"]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "FOLLOW_S", 0.02)


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """What training swaps by rename."""
    return tmp_path / "best"


@pytest.fixture
def following(options: EngineOptions, catalogue: dict[str, Path], tmp_path: Path, best: Path) -> EngineOptions:
    return replace(options, checkpoint=catalogue["a"], watch=best, cache=tmp_path / "cache")


def point(best: Path, target: Path) -> None:
    best.with_name("next").symlink_to(target)
    best.with_name("next").replace(best)


def test_a_better_checkpoint_is_promoted_and_stays(
    following: EngineOptions, catalogue: dict[str, Path], best: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged one is passed over, and one that the run deletes is still served."""
    killed = PinnedCheckpoints(following.cache / "followed")
    killed.open()
    os.close(killed.lock)  # what is left of a service that was killed

    async def body() -> None:
        async with running(following) as engine:
            point(best, catalogue["b"])
            b = read_manifest(catalogue["b"]).id
            await until(lambda: engine.current is not None and engine.current.id == b)
            await until(lambda: engine.rollout.retiring is None)
            golden, _ = await read(engine.submit(request(1, new=300)))
            shutil.rmtree(catalogue["b"])  # as a run does with what it no longer points at
            os.kill(worker_pid(engine) or 0, signal.SIGKILL)
            await until(lambda: current(engine).restarts == 1)
            assert (await read(engine.submit(request(1, new=300))))[0] == golden
            point(best, catalogue["damaged"])
            damaged = read_manifest(catalogue["damaged"]).id
            await until(lambda: f"not promoted: {damaged}" in caplog.text)
            assert engine.find().id == b
            await read(engine.submit(request(new=10)))
            mine = engine.rollout.pinned.path
            assert {path.name for path in mine.parent.iterdir()} == {mine.name, mine.name + ".lock"}
        assert not list(mine.parent.iterdir())

    with caplog.at_level(logging.INFO):
        run(body())


def circle(path: Path) -> None:
    path.symlink_to(path)


def fifo(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "manifest.json")


def huge(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").touch()
    os.truncate(path / "manifest.json", 700 << 20)


def too_large(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_bytes(b"{" + b" " * MAX_MANIFEST_BYTES + b"}")


def lists_a_fifo(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"format": 1, "files": {"model.safetensors": "00"}}')
    os.mkfifo(path / "model.safetensors")


def lists_what_is_elsewhere(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"format": 1, "files": {"../../secret": "00"}}')


def lists_what_is_not_there(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"format": 1, "files": {"model.safetensors": "00"}}')


BAD = [circle, fifo, huge, too_large, lists_a_fifo, lists_what_is_elsewhere, lists_what_is_not_there]


@pytest.mark.parametrize("bad", BAD)
def test_following_goes_on_whatever_it_finds(
    following: EngineOptions,
    catalogue: dict[str, Path],
    best: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    bad: Callable[[Path], None],
) -> None:
    """A link in a circle ended it for ever; a FIFO stopped the whole service."""

    async def body() -> None:
        async with running(following) as engine:
            bad(tmp_path / "bad")
            point(best, tmp_path / "bad")
            await until(lambda: "not promoted" in caplog.text)
            said = caplog.text.count("not promoted")
            await asyncio.sleep(5 * rollout.FOLLOW_S)
            assert caplog.text.count("not promoted") == said, "once is enough"
            point(best, catalogue["b"])
            await until(lambda: engine.current is not None and engine.current.id == read_manifest(catalogue["b"]).id)

    run(body())


def test_services_that_share_a_cache_leave_each_others_copies_alone(catalogue: dict[str, Path], tmp_path: Path) -> None:
    """Containers have equal process ids, and machines share a home: a pid said nothing about who is alive."""
    manifest = read_manifest(catalogue["a"])
    first, second = (PinnedCheckpoints(tmp_path / "followed") for _ in range(2))
    first.open()
    pinned = first.pin(manifest)
    second.open()
    second.pin(manifest)
    assert read_manifest(pinned).id == manifest.id
    os.close(first.lock)  # killed
    third = PinnedCheckpoints(tmp_path / "followed")
    third.open()
    assert not first.path.exists()
    assert second.path.exists()
    second.close()
    third.close()
    third.close()
    assert list((tmp_path / "followed").iterdir()) == []


def test_a_pinned_checkpoint_is_whole_and_keeps_its_signature(catalogue: dict[str, Path], tmp_path: Path) -> None:
    (catalogue["a"] / "manifest.sig").write_text("signed")
    manifest = read_manifest(catalogue["a"])
    pins = PinnedCheckpoints(tmp_path / "followed")
    pins.open()
    pinned = pins.pin(manifest)
    assert {path.name: path.read_bytes() for path in pinned.iterdir()} == {p.name: p.read_bytes() for p in catalogue["a"].iterdir()}
    assert pins.pin(manifest) == pinned
    other = pins.pin(read_manifest(catalogue["b"]))
    pins.remove_unused({other})
    assert list(pins.path.iterdir()) == [other]
    pins.close()
