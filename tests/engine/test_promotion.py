"""Hot promotion: two workers side by side, and a stream that ends on the checkpoint that it began with."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.files import write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.checkpoint.manifest import read_manifest
from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer
from service.engine.interface import CheckpointGone, CheckpointNotFound, CheckpointRefused, Chunk, EngineOptions, PromotionInProgress
from tests.engine.conftest import BLOCK, TEXT
from tests.engine.test_worker import gone, options, read, request, run, running, until, worker_pid

__all__ = ["options"]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three checkpoints, one of them damaged, in one directory."""
    directory = tmp_path_factory.mktemp("catalogue")
    config = GPTConfig(vocab_size=len(TEXT), block_size=BLOCK, n_layer=1, n_head=2, n_embd=24, dropout=0.0)
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        write_checkpoint(directory / name, checkpoint_files(GPT(config).eval(), CharTokenizer(TEXT), list(range(12)) * 3), {"name": name})
    shutil.copytree(directory / "a", directory / "damaged")
    manifest = directory / "damaged" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"name": "a"', b'"name": "d"'))
    weights = directory / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"12345678")
    return {"": directory, **{name: directory / name for name in ("a", "b", "damaged")}}


def test_running_streams_stay_and_new_ones_move(options: EngineOptions, catalogue: dict[str, Path]) -> None:
    a, b = (read_manifest(catalogue[name]).id for name in "ab")

    async def body() -> None:
        async with running(replace(options, checkpoint=catalogue["a"], checkpoints=catalogue[""])) as engine:
            golden_a, _ = await read(engine.submit(request(1, new=30_000)))
            old = engine.submit(request(1, new=100_000_000))
            old_chunks: list[Chunk] = []
            old_reader = asyncio.ensure_future(read(old, old_chunks))
            first = worker_pid(engine)
            assert (await engine.promote(b)).id == b
            assert engine.current is not None
            assert engine.current.id == b
            assert not old_reader.done()
            assert {c.id for c in engine.loaded} == {a, b}
            with pytest.raises(PromotionInProgress):
                await engine.promote(a)
            golden_b, _ = await read(engine.submit(request(1, new=300)))
            assert golden_b != golden_a[:300]
            still, _ = await read(engine.submit(request(1, new=300, checkpoint_id=a)))  # named, while it is loaded
            assert still == golden_a[:300]
            switched = old_chunks[-1].index
            await until(lambda: old_chunks[-1].index > switched + 1000)
            old_reader.cancel()
            text = "".join(chunk.text for chunk in old_chunks)
            shared = min(len(text), len(golden_a))
            assert text[:shared] == golden_a[:shared]
            await until(lambda: engine.retiring is None)
            assert first is not None
            await until(lambda: gone(first))
            with pytest.raises(CheckpointGone):
                engine.submit(request(checkpoint_id=a))
            assert (await engine.rollback()).id == a
            assert (await read(engine.submit(request(1, new=300))))[0] == golden_a[:300]

    run(body())


def test_a_bad_checkpoint_is_refused_and_changes_nothing(options: EngineOptions, catalogue: dict[str, Path]) -> None:
    damaged = read_manifest(catalogue["damaged"]).id

    async def body() -> None:
        async with running(replace(options, checkpoint=catalogue["a"], checkpoints=catalogue[""])) as engine:
            before, pid = engine.current, worker_pid(engine)
            with pytest.raises(CheckpointRefused, match=r"model\.safetensors"):
                await engine.promote(damaged)
            with pytest.raises(CheckpointNotFound):
                await engine.promote("sha256:" + "0" * 64)
            with pytest.raises(CheckpointNotFound):
                await engine.rollback()
            assert engine.current is before
            assert worker_pid(engine) == pid
            await read(engine.submit(request(new=10)))

    run(body())


def test_a_training_run_is_followed(options: EngineOptions, catalogue: dict[str, Path], tmp_path: Path) -> None:
    """``best`` is a link that is swapped by rename; a damaged one is passed over, and one that the run deletes is still served."""
    best = tmp_path / "best"
    followed = tmp_path / "cache" / "followed"
    (followed / "999999999").mkdir(parents=True)  # left by a service that was killed

    def point(name: str) -> None:
        (tmp_path / "next").symlink_to(catalogue[name])
        (tmp_path / "next").replace(best)

    async def body() -> None:
        async with running(replace(options, checkpoint=catalogue["a"], watch=best, cache=tmp_path / "cache")) as engine:
            point("b")
            b = read_manifest(catalogue["b"]).id
            await until(lambda: engine.current is not None and engine.current.id == b)
            await until(lambda: engine.retiring is None)
            golden, _ = await read(engine.submit(request(1, new=300)))
            best.unlink()
            shutil.rmtree(catalogue["b"])  # as a run does with what it no longer points at
            os.kill(worker_pid(engine) or 0, signal.SIGKILL)
            assert (await read(engine.submit(request(1, new=300))))[0] == golden
            assert engine.status.restarts == 1
            point("damaged")
            await asyncio.sleep(2.5)  # it is tried, and refused
            assert engine.current is not None
            assert engine.current.id == b
            await read(engine.submit(request(new=10)))
            assert {path.name for path in followed.iterdir()} == {str(os.getpid())}
        assert not list(followed.iterdir())

    run(body())
