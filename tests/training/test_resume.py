"""A killed run, resumed, is bitwise the run that was never killed: real processes, SIGKILL at random moments."""

import json
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.files import read_checkpoint
from model.checkpoint.manifest import CheckpointError
from tests.training.processes import TINY, Run, minutes_long
from training.config import TrainingError
from training.data import load_text
from training.run_directory import RunDirectory
from training.trainer import Trainer


def kill_somewhere(run: Run, choose: random.Random) -> bool:
    """Kill in the middle of a checkpoint's write, or anywhere between two saves; whether it was alive until then."""
    before = run.saved_step
    if choose.random() < 0.5:
        if not run.wait_until(lambda: run.saved_step > before and run.is_writing):
            return False
    else:
        if not run.wait_until(lambda: run.saved_step > before):
            return False
        time.sleep(choose.uniform(0, 0.15))  # a random moment, not a wait for something
    run.kill()
    return run.status == -signal.SIGKILL


def survive(run: Run, kills: int, seed: int) -> int:
    """Kill and resume until the run is done; how many times it was killed."""
    choose, killed = random.Random(seed), 0
    run.start()
    while killed < kills and kill_somewhere(run, choose):
        killed += 1
        for link in ("last", "best"):
            if (run.path / link).exists():
                read_checkpoint(run.path / link)  # whatever the moment: what the links point at is whole
        run.resume()
    assert run.wait() == 0, run.err
    return killed


def test_a_run_killed_and_resumed_equals_one_that_was_not(tmp_path: Path, text_file: Path, uninterrupted: Run) -> None:
    run = Run(tmp_path / "run", text_file)
    assert survive(run, kills=3, seed=1) >= 1
    assert run.result() == uninterrupted.result()


@minutes_long
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_twenty_of_twenty(tmp_path: Path, text_file: Path, uninterrupted: Run, seed: int) -> None:
    run = Run(tmp_path / "run", text_file)
    assert survive(run, kills=2, seed=100 + seed) >= 1
    assert run.result() == uninterrupted.result()


def test_signals_save_and_say_how_to_go_on(tmp_path: Path, text_file: Path, uninterrupted: Run) -> None:
    run = Run(tmp_path / "run", text_file).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        before = run.saved_step
        assert run.wait_until(lambda before=before: run.saved_step > before)  # type: ignore[misc]
        assert run.send(number) == 128 + number
        assert f"saved at step {run.saved_step}. Go on with: python -m training resume {run.path}" in run.out
        assert "Traceback" not in run.err
        run.resume()
    assert run.wait() == 0
    assert run.result() == uninterrupted.result()


def steps(trainer: Trainer, count: int) -> None:
    """Some steps of a run, and no save at the end: as if it was killed after them."""
    progress = trainer.progress()
    for _ in range(count):
        trainer.advance(progress)


SHORT = replace(TINY, max_iters=12, eval_interval=4, save_interval=7)
RESULT = ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors", "metrics.jsonl", "samples/step-000012.txt")


@pytest.mark.parametrize("change", [{}, {"ema": 0.9}, {"optimizer": "muon", "schedule": "wsd"}, {"tokenizer": "bpe", "vocab_size": 262}])
def test_every_way_to_train_resumes_bitwise(tmp_path: Path, text_file: Path, change: dict[str, Any]) -> None:
    """Twelve steps at once, and twelve as eleven, of which the save after the eighth remains, and four."""
    text, config = load_text([str(text_file)]), replace(SHORT, **change)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Trainer.start(config, text, whole).run()
    steps(Trainer.start(config, text, parts), 11)
    trainer = Trainer.resume(parts)
    assert trainer.state.step == 8
    trainer.run()
    assert [(whole / name).read_bytes() for name in RESULT] == [(parts / name).read_bytes() for name in RESULT]


def test_half_a_checkpoint_is_never_loaded(tmp_path: Path, text_file: Path) -> None:
    """What a kill leaves behind: an unfinished directory, a finished one that nothing points at yet, half a line."""
    text = load_text([str(text_file)])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Trainer.start(SHORT, text, whole).run()
    steps(Trainer.start(SHORT, text, parts), 8)
    unfinished = parts / ".step-000011.writing-1"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_bytes((parts / "last" / "manifest.json").read_bytes()[:50])
    (parts / "step-000010").mkdir()
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train_loss": 1.0, "val_loss": 0.5, "lr": 1.0}\n{"step": 12, "trai')
    Trainer.resume(parts).run()
    assert [(whole / name).read_bytes() for name in RESULT] == [(parts / name).read_bytes() for name in RESULT]
    assert {p.name for p in parts.glob("*step-*")} == {(parts / link).resolve().name for link in ("last", "best")}


def test_a_crash_between_the_two_links_is_repaired(tmp_path: Path, text_file: Path) -> None:
    """`last` is swapped before `best`: a kill between them left `best` one validation behind."""
    trainer = Trainer.start(SHORT, load_text([str(text_file)]), tmp_path / "run")
    steps(trainer, 8)
    assert trainer.state.best_step == 8
    (tmp_path / "run" / "best").unlink()
    (tmp_path / "run" / "best").symlink_to("step-000004")
    Trainer.resume(tmp_path / "run")
    assert (tmp_path / "run" / "best").resolve().name == "step-000008"


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json", "model.safetensors"])
def test_a_damaged_save_is_named(tmp_path: Path, uninterrupted: Run, name: str) -> None:
    run = copy_of(uninterrupted, tmp_path)
    file = run / "last" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=name):
        Trainer.resume(run)


def test_an_exported_checkpoint_cannot_be_resumed_from(tmp_path: Path, uninterrupted: Run) -> None:
    run = copy_of(uninterrupted, tmp_path)
    manifest = json.loads((run / "last" / "manifest.json").read_bytes())
    del manifest["files"]["optimizer.safetensors"]
    (run / "last" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="exported for serving"):
        Trainer.resume(run)


def copy_of(run: Run, tmp_path: Path) -> Path:
    """The run's directory, to be damaged."""
    return Path(shutil.copytree(run.path, tmp_path / "copy", symlinks=True))


def test_only_a_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no last/ checkpoint"):
        RunDirectory.open(tmp_path)
    (tmp_path / "last").mkdir()
    for content in (b"", b"[]", b"{}", b'{"train": {}, "data": {}}', b'{"train": {"max_iters": 0}}', b'{"train": {"x": 1}, "data": {}}'):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(TrainingError, match=r"config\.json"):
            RunDirectory.open(tmp_path)
