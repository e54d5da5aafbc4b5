"""Each tracker gets the figures of the curve, without a network; none can end a run."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from tests.training.processes import TINY
from training.config import TrainConfig, TrainingError
from training.data import Text
from training.run_directory import RunDirectory
from training.tracking import TRACKERS
from training.trainer import Trainer

SHORT = replace(TINY, max_iters=4, eval_interval=2, sample_chars=5)
TEXT = Text.of("to be or not to be " * 60)
Read = Callable[[Path], list[tuple[int, float]]]


def read_tensorboard(run: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(run / "tensorboard")).Reload().Scalars("loss/validation")]


def read_mlflow(run: Path) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(run / "mlruns").resolve().as_uri())
    identity = (run / "mlflow-run-id").read_text().strip()
    assert client.get_run(identity).data.params["max_iters"] == "4"
    assert client.get_run(identity).info.status == "FINISHED"
    return [(metric.step, metric.value) for metric in client.get_metric_history(identity, "loss/validation")]


def read_wandb(run: Path) -> list[tuple[int, float]]:
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    internal: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found = []
    for data in log_records(file.read_bytes()):
        items = {item.key or "/".join(item.nested_key): item.value_json for item in internal.Record.FromString(data).history.item}
        if "loss/validation" in items:
            found.append((int(items["_step"]), float(items["loss/validation"])))
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after the seven bytes that wandb begins it with."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:  # no room for a header: the rest of the block is padding
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]  # 1 whole, 2 first, 3 middle, 4 last
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.filterwarnings("ignore")  # of the trackers' own imports
@pytest.mark.parametrize(("track", "read"), [("tensorboard", read_tensorboard), ("mlflow", read_mlflow), ("wandb", read_wandb)])
def test_each_tracker_gets_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: Literal["tensorboard", "mlflow", "wandb"], read: Read
) -> None:
    pytest.importorskip(track)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    trainer = Trainer.start(replace(SHORT, track=track), TEXT, tmp_path / "run")
    trainer.run()
    assert not trainer.reporter.tracking.failed
    steps, losses = zip(*read(tmp_path / "run"), strict=True)
    assert steps == (2, 4)
    assert losses == pytest.approx([point.val_loss for point in trainer.curve])


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Path, config: TrainConfig) -> NoReturn:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(TRACKERS, "wandb", fail)
    trainer = Trainer.start(replace(SHORT, track="wandb"), TEXT, tmp_path / "run")
    trainer.run()
    assert len(trainer.curve) == 2
    assert capsys.readouterr().err == "--track wandb: no network; going on without\n"


def test_a_missing_package_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"pip install 'folio\[mlflow\]'"):
        Trainer(replace(SHORT, track="mlflow"), TEXT, RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_runs_of_before_go_on() -> None:
    assert TrainConfig.from_json({"tensorboard": True}).track == "tensorboard"
    assert TrainConfig.from_json({"tensorboard": False}).track == "none"
