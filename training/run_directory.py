"""What a run leaves on the disk, and the order in which it gets there.

    RUN/config.json      the configuration, the text's name, hash and path
    RUN/metrics.jsonl    one line for each validation
    RUN/step-NNNNNN/     finished checkpoints; `best`, `last` and `plateau` are links to some of them, swapped by rename
    RUN/samples/         text by the model at each validation
    RUN/loss.png         the curve so far
    RUN/README.md        the model card

A crash at any moment leaves `best` and `last` pointing at complete checkpoints. Nothing else in a run is needed to go on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from model.checkpoint.files import dump_json, write_checkpoint
from model.checkpoint.manifest import read_manifest
from training.config import TrainConfig, TrainingError
from training.links import LINKS, OWN, find_last, locate, point, prune, restore_links, step_name, target


@dataclass(frozen=True, slots=True)
class Point:
    """One validation."""

    step: int
    train_loss: float
    """Mean over the steps since the validation before, dropout on, in nats per token."""
    val_loss: float
    """Exact mean over the validation split (with ``eval_tokens`` over a sample of it), dropout off."""
    lr: float
    """The part of the peak learning rate in use."""
    train_loss_eval: float | None = None
    """Over as much of the training text, dropout off."""
    temperature: float | None = None
    """The best one on the calibration slice."""
    val_loss_calibrated: float | None = None
    """``val_loss`` at that temperature."""
    val_loss_whole: float | None = None
    """Exact, at the end of a run whose validations were samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDocument:
    """``config.json``: what makes the run reproducible."""

    train: TrainConfig
    data_name: str
    data_sha256: str
    data_paths: list[str] | None
    """As they were given: files, directories, globs."""
    validation: dict[str, Any] | None = None
    """``paths`` and ``sha256`` of the validation text, where it is one of its own."""
    init_from: dict[str, Any] | None = None
    """``id``, ``steps`` and ``start`` of the checkpoint whose weights the run began with."""
    extends: dict[str, Any] | None = None
    """``id`` and ``steps`` of the checkpoint of another run that this one goes on from."""

    def to_json(self) -> dict[str, Any]:
        data = {"name": self.data_name, "sha256": self.data_sha256, "paths": self.data_paths}
        rest = {"validation": self.validation, "init_from": self.init_from, "extends": self.extends}
        return {"train": self.train.to_json(), "data": data} | {name: value for name, value in rest.items() if value}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`. Raises TrainingError, KeyError and TypeError."""
        data = document["data"]
        paths = data.get("paths") or ([data["path"]] if data.get("path") else None)  # path: runs of before there could be several
        return cls(
            train=TrainConfig.from_json(document["train"]),
            data_name=data["name"],
            data_sha256=data["sha256"],
            data_paths=paths,
            validation=document.get("validation"),
            init_from=document.get("init_from"),
            extends=document.get("extends"),
        )


class RunDirectory:
    """One run's files. Every failure to write is a TrainingError that names the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"

    def create(self, document: RunDocument) -> None:
        """Begin a new run. Raises TrainingError when the directory holds one already or cannot be written."""
        if any(target(self.path, name) or locate(self.path, name) for name in LINKS):
            raise TrainingError(
                f"{self.path} holds a checkpoint: go on with `python -m training resume {self.path}`, or choose another --out"
            )
        with writing(self.path):
            if self.path.exists() and any(self.path.iterdir()) and not self.metrics_path.exists():
                raise TrainingError(f"{self.path} is not empty and holds no run: choose another --out")
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
        self.write("config.json", dump_json(document.to_json()))
        self.write("metrics.jsonl", b"")

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, RunDocument]:
        """A run to go on with, and its ``config.json``. Raises TrainingError."""
        cls(path).last()
        try:
            document = json.loads((path / "config.json").read_bytes())
            return cls(path), RunDocument.from_json(document)
        except TrainingError as error:
            raise TrainingError(f"{path / 'config.json'}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise TrainingError(f"{path / 'config.json'} cannot be read: it is needed to resume") from None

    def last(self) -> Path:
        """The checkpoint to go on from. Raises TrainingError."""
        if (last := find_last(self.path)) is None:
            start = f"python -m training --out {self.path}"
            raise TrainingError(f"{self.path} has no last/ checkpoint to resume from; start a run with `{start}`")
        return last

    def branch_point(self, max_iters: int, parting: int) -> tuple[Path, int]:
        """Where a run of ``max_iters`` steps goes on from, and its steps: ``last`` or ``plateau``, from before the schedules part.

        Where neither is, the later of the two: the new schedule is joined in its middle. Raises TrainingError if both are past its end.
        """
        paths = [path for path in (self.last(), locate(self.path, "plateau")) if path is not None]
        found: list[tuple[int, Path]] = [(read_manifest(path).document["steps"], path) for path in paths]
        for latest in (parting, max_iters - 1):
            if fitting := [(step, path) for step, path in found if step <= latest]:
                step, path = max(fitting)
                return path, step
        raise TrainingError(f"{self.path} has done {found[0][0]} steps already: --max-iters must be more")

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the run in one piece."""
        temporary = self.path / f".{name.replace('/', '-')}.{os.getpid()}"
        with writing(self.path / name):
            try:
                temporary.write_bytes(data)
                temporary.replace(self.path / name)
            finally:
                temporary.unlink(missing_ok=True)

    def save(self, step: int, files: Mapping[str, bytes], manifest: Mapping[str, Any], names: Sequence[str]) -> None:
        """Write ``step-NNNNNN``, let ``names`` (last, best, plateau) mean it, and delete what no name means any more."""
        name = step_name(step)
        last = locate(self.path, "last")
        with writing(self.path / name, f"; the last good checkpoint is {self.path / 'last'}" if last else ""):
            if not (self.path / name).exists():
                write_checkpoint(self.path / name, files, manifest)
            for link in names:
                point(self.path, link, name)
        prune(self.path)

    def repair(self, last: Path, *, is_best: bool) -> None:
        """Finish what a crash or a copy did to the names, and delete what is newer than ``last``: it will be made again."""
        with writing(self.path):
            restore_links(self.path)
            name = last.name if OWN.fullmatch(last.name) else target(self.path, "last")
            if name:
                point(self.path, "last", name)
                if is_best:
                    point(self.path, "best", name)
        prune(self.path)

    def append_metrics(self, point: Point) -> None:
        """Add one validation's figures."""
        with writing(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(point)) + "\n")

    def replace_metrics(self, curve: Sequence[Point]) -> None:
        """Leave exactly these lines: a resumed run writes those after its last save again."""
        self.write("metrics.jsonl", "".join(json.dumps(asdict(point)) + "\n" for point in curve).encode())


@contextlib.contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turn a full disk, a read-only directory and the like into a TrainingError."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}{hint}") from None


def read_metrics(run: Path) -> Sequence[Point]:
    """The validations of a run; a line that a crash cut short is left out. Raises TrainingError."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise TrainingError(f"{run / 'metrics.jsonl'} cannot be read: is {run} the directory of a run?") from None
    points = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            value = json.loads(line)
            points.append(Point(**value))
    return points
