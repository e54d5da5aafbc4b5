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
from model.checkpoint.manifest import Manifest, read_manifest
from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer
from service.engine import rollout, worker_process
from service.engine.catalogue import find_checkpoint
from service.engine.errors import CheckpointGone, CheckpointNotFound, CheckpointRefused, PromotionInProgress
from service.engine.interface import Chunk, EngineOptions
from tests.engine.conftest import BLOCK, TEXT
from tests.engine.engines import ENDLESS, current, gone, read, request, run, running, until, worker_pid


@pytest.fixture
def catalogue(tmp_path: Path) -> dict[str, Path]:
    """Three checkpoints, one of them damaged, in one directory."""
    directory = tmp_path / "catalogue"
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


@pytest.fixture
def serving_a(options: EngineOptions, catalogue: dict[str, Path]) -> EngineOptions:
    return replace(options, checkpoint=catalogue["a"], checkpoints=catalogue[""])


def ids(catalogue: dict[str, Path]) -> tuple[str, str, str]:
    a, b, damaged = (read_manifest(catalogue[name]).id for name in ("a", "b", "damaged"))
    return a, b, damaged


def test_running_streams_stay_and_new_ones_move(serving_a: EngineOptions, catalogue: dict[str, Path]) -> None:
    a, b, _ = ids(catalogue)

    async def body() -> None:
        async with running(serving_a) as engine:
            golden_a, _ = await read(engine.submit(request(1, new=30_000)))
            old = engine.submit(request(1, new=ENDLESS))
            old_chunks: list[Chunk] = []
            old_reader = asyncio.ensure_future(read(old, old_chunks))
            first = worker_pid(engine)
            assert (await engine.promote(b)).id == b
            assert engine.find().id == b
            assert not old_reader.done()
            assert {c.id for c in engine.loaded} == {a, b}
            with pytest.raises(PromotionInProgress, match="1 texts still use"):
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
            await until(lambda: engine.rollout.retiring is None)
            assert first is not None
            await until(lambda: gone(first))
            with pytest.raises(CheckpointGone):
                engine.submit(request(checkpoint_id=a))
            assert (await engine.rollback()).id == a
            assert (await read(engine.submit(request(1, new=300))))[0] == golden_a[:300]

    run(body())


def test_a_bad_checkpoint_is_refused_and_changes_nothing(serving_a: EngineOptions, catalogue: dict[str, Path]) -> None:
    _, _, damaged = ids(catalogue)

    async def body() -> None:
        async with running(serving_a) as engine:
            before, pid = engine.current, worker_pid(engine)
            with pytest.raises(CheckpointRefused, match=r"model\.safetensors"):
                await engine.promote(damaged)
            with pytest.raises(CheckpointNotFound):
                await engine.promote("sha256:" + "0" * 64)
            with pytest.raises(CheckpointNotFound):
                await engine.rollback()
            with pytest.raises(CheckpointNotFound):
                engine.cancel_promotion()
            assert engine.current is before
            assert worker_pid(engine) == pid
            await read(engine.submit(request(new=10)))

    run(body())


def exchange(catalogue: dict[str, Path], name: str, other: str) -> None:
    """From now on, ``name``'s directory holds what ``other``'s did."""
    shutil.rmtree(catalogue[name])
    shutil.copytree(catalogue[other], catalogue[name])


def test_what_was_loaded_is_what_was_asked_for(
    serving_a: EngineOptions, catalogue: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is exchanged between the look-up and the loading was served under the wrong id."""
    a, b, _ = ids(catalogue)

    def find_then_exchange(directory: Path | None, checkpoint_id: str) -> Manifest | None:
        found = find_checkpoint(directory, checkpoint_id)
        exchange(catalogue, "b", "a")
        return found

    async def body() -> None:
        async with running(serving_a) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(rollout, "find_checkpoint", find_then_exchange)
                with pytest.raises(CheckpointRefused, match="has changed on the disk"):
                    await engine.promote(b)
            assert engine.find().id == a

    run(body())


def test_going_back_is_going_back_to_the_same(serving_a: EngineOptions, catalogue: dict[str, Path]) -> None:
    _, b, _ = ids(catalogue)

    async def body() -> None:
        async with running(serving_a) as engine:
            await engine.promote(b)
            await until(lambda: engine.rollout.retiring is None)
            exchange(catalogue, "a", "b")
            with pytest.raises(CheckpointRefused, match="has changed on the disk"):
                await engine.rollback()
            assert engine.find().id == b

    run(body())


@pytest.mark.parametrize("ending", ["cancelled", "too long", "closed"])
def test_a_candidate_that_hangs_blocks_nobody_for_long(
    serving_a: EngineOptions, catalogue: dict[str, Path], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """It held up every other promotion for 24 minutes, and nothing said what was going on."""
    a, b, _ = ids(catalogue)
    if ending == "too long":
        monkeypatch.setattr(rollout, "PROMOTION_S", 0.5)

    async def body() -> None:
        async with running(serving_a) as engine:
            promotion = asyncio.ensure_future(engine.promote(b))
            await until(lambda: engine.rollout.candidate is not None and engine.rollout.candidate.worker is not None)
            assert engine.rollout.candidate is not None
            assert engine.rollout.candidate.worker is not None
            pid = engine.rollout.candidate.worker.process.pid
            os.kill(pid, signal.SIGSTOP)
            if ending == "cancelled":
                with pytest.raises(PromotionInProgress, match=f"{b} has been loading for"):
                    await engine.promote(b)
                engine.cancel_promotion()
            if ending == "closed":
                await engine.close()
            words = {"cancelled": "was cancelled", "too long": "was not loaded after", "closed": "shutting down"}[ending]
            with pytest.raises(CheckpointRefused, match=words):
                await promotion
            assert gone(pid)
            if ending != "closed":
                assert engine.find().id == a
                assert engine.rollout.candidate is None

    run(body())


def test_a_candidate_is_not_tried_again_and_again(serving_a: EngineOptions, catalogue: dict[str, Path]) -> None:
    _, b, _ = ids(catalogue)

    async def body() -> None:
        async with running(serving_a) as engine:
            promotion = asyncio.ensure_future(engine.promote(b))
            await until(lambda: engine.rollout.candidate is not None and engine.rollout.candidate.worker is not None)
            assert engine.rollout.candidate is not None
            assert engine.rollout.candidate.worker is not None
            os.kill(engine.rollout.candidate.worker.process.pid, signal.SIGKILL)
            with pytest.raises(CheckpointRefused, match="killed by SIGKILL"):
                await promotion
            assert (await engine.promote(b)).id == b
            os.kill(worker_pid(engine) or 0, signal.SIGKILL)  # once it serves, it is kept alive like any other
            await until(lambda: current(engine).restarts == 1)
            await read(engine.submit(request(new=10)))

    run(body())


def test_closing_in_the_midst_of_a_switch_leaves_no_process(
    serving_a: EngineOptions, catalogue: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old worker was killed and nobody waited for it, if the engine closed while it was being retired."""
    _, b, _ = ids(catalogue)
    reaped = worker_process.WorkerProcess.kill
    ended: list[int | None] = []

    async def slowly(worker: worker_process.WorkerProcess) -> None:
        await asyncio.sleep(0.05)
        await reaped(worker)
        ended.append(worker.process.returncode)

    monkeypatch.setattr(worker_process.WorkerProcess, "kill", slowly)

    async def body() -> None:
        async with running(serving_a) as engine:
            await engine.promote(b)
            await until(lambda: engine.rollout.retiring is None)
        assert len(ended) == 2
        assert None not in ended

    run(body())
