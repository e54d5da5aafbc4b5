"""Experiment trackers, on request (``--track``): each gets the same figures at each validation, and none can end a run.

All work without a network: TensorBoard's files and MLflow's (unless MLFLOW_TRACKING_URI names a server) lie in the run's directory, and
Weights & Biases writes there too where it has no key or WANDB_MODE says offline (``wandb sync`` sends it later).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Protocol

from training.config import TrainConfig, TrainingError
from training.run_directory import Point

PROJECT = "folio"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """Where the figures of a run go, beside its directory."""

    def write(self, step: int, figures: Mapping[str, float], sample: str) -> None:
        """Add one validation: named figures and what the model writes by now."""

    def close(self) -> None:
        """Finish; what was written is safe then."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"))

    def write(self, step: int, figures: Mapping[str, float], sample: str) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.add_text("sample", f"```\n{sample}\n```", step)
        self.writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, which a resumed run goes on with where there is a network."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        import wandb

        self.teardown = wandb.teardown
        self.run = wandb.init(
            project=PROJECT,
            name=run.name,
            id=remembered(run, "wandb", lambda: secrets.token_hex(4)),
            resume="allow",
            dir=str(run),
            config=config.to_json(),
            mode=None if "WANDB_MODE" in os.environ or has_wandb_key() else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, figures: Mapping[str, float], sample: str) -> None:
        """See `Tracker`."""
        self.run.log({**figures, "sample": sample}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()
        self.teardown()  # ends its process, and with that writes what it still holds


class MLflow:
    """A run of MLflow, which a resumed run goes on with."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        from mlflow import MlflowClient

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files need no database, and this is what they are for
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run / "mlruns").resolve().as_uri()
        self.client = MlflowClient(tracking_uri=uri)
        self.id = remembered(run, "mlflow", functools.partial(self.create, run.name, config.to_json()))

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """A new run's id."""
        experiment = self.client.get_experiment_by_name(PROJECT)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        run_id: str = self.client.create_run(experiment_id, run_name=name).info.run_id
        for field, value in config.items():
            self.client.log_param(run_id, field, value)
        return run_id

    def write(self, step: int, figures: Mapping[str, float], sample: str) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self.client.log_metric(self.id, name, value, step=step)
        self.client.log_text(self.id, sample, f"samples/step-{step:06d}.txt")

    def close(self) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.id)


TRACKERS: dict[str, Callable[[Path, TrainConfig], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Tracking:
    """A tracker that begins with the first validation (building a run touches no disk), and whose failures are said once."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        """Raises TrainingError when the package is missing."""
        self.run, self.config = run, config
        self.tracker: Tracker | None = None
        self.failed = config.track == "none"
        if config.track != "none" and importlib.util.find_spec(PACKAGES[config.track]) is None:
            raise TrainingError(f"--track {config.track} needs the package {PACKAGES[config.track]}: pip install 'folio[{config.track}]'")

    def write(self, point: Point, sample: str) -> None:
        """Add one validation."""
        figures = {
            "loss/training": point.train_loss,
            "loss/training_without_dropout": point.train_loss_eval,
            "loss/validation": point.val_loss,
            "loss/validation_calibrated": point.val_loss_calibrated,
            "learning_rate": point.lr * self.config.learning_rate,
        }
        if self.failed:
            return
        try:
            self.tracker = self.tracker or TRACKERS[self.config.track](self.run, self.config)
            self.tracker.write(point.step, {name: value for name, value in figures.items() if value is not None}, sample)
        except Exception as error:  # whatever a tracker can throw
            self.give_up(error)

    def close(self) -> None:
        """Finish."""
        if self.tracker and not self.failed:
            try:
                self.tracker.close()
            except Exception as error:  # whatever a tracker can throw
                self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Say why, and go on without."""
        self.failed = True
        print(f"--track {self.config.track}: {' '.join(str(error).split())[:300]}; going on without", file=sys.stderr)


def remembered(run: Path, tracker: str, make: Callable[[], str]) -> str:
    """The tracker's own id of this run, made once and kept in the run's directory, so that a resumed run goes on with it."""
    file = run / f"{tracker}-run-id"
    if not file.exists():
        identity: str = make()
        file.write_text(identity + "\n")
    return file.read_text().strip()


def has_wandb_key() -> bool:
    """Whether Weights & Biases could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc().hosts)
    except (OSError, NetrcParseError, RuntimeError):
        return False
