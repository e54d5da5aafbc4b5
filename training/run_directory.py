"""What a run leaves on the disk, and the order in which it gets there.

    RUN/config.json      the configuration, the text's name and hash
    RUN/metrics.jsonl    one line for each validation
    RUN/step-NNNNNN/     finished checkpoints; `best` and `last` are links to two of them, swapped by rename
    RUN/samples/         text by the model at each validation
    RUN/loss.png         the curve so far

A crash at any moment leaves `best` and `last` pointing at complete checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from model.checkpoint import dump_json, write_checkpoint
from training.config import TrainingError


class RunDirectory:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, document: dict[str, Any]) -> RunDirectory:
        """A new run. Raises TrainingError when ``path`` holds one already or cannot be written."""
        if (path / "last").exists() or (path / "best").exists():
            raise TrainingError(f"{path} holds a checkpoint: go on with `python -m training resume {path}`, or choose another --out")
        run = cls(path)
        try:
            (path / "samples").mkdir(parents=True, exist_ok=True)
            run.metrics_path.write_bytes(b"")
            (path / "config.json").write_bytes(dump_json(document))
        except OSError as error:
            raise TrainingError(f"cannot write to {path}: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, dict[str, Any]]:
        """A run to go on with, and its ``config.json``. Raises TrainingError."""
        if not (path / "last").exists():
            raise TrainingError(f"{path} has no last/ checkpoint to resume from; start a run with `python -m training --out {path}`")
        try:
            document = json.loads((path / "config.json").read_bytes())
        except (OSError, ValueError):
            raise TrainingError(f"{path / 'config.json'} cannot be read: it is needed to resume") from None
        return cls(path), document

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    def save(self, step: int, files: dict[str, bytes], manifest: dict[str, Any], *, best: bool) -> None:
        """Write ``step-NNNNNN``, point ``last`` (and ``best``) at it, and delete what neither points at."""
        name = f"step-{step:06d}"
        try:
            if not (self.path / name).exists():
                write_checkpoint(self.path / name, files, manifest)
            for link in ("best", "last") if best else ("last",):
                self.point(link, name)
        except OSError as error:
            raise TrainingError(f"cannot save {self.path / name}: {error.strerror}; the last good checkpoint is {self.path}/last") from None
        self.prune()

    def point(self, link: str, name: str) -> None:
        """Swap a link by rename: readers see the old target or the new one."""
        temporary = self.path / f".{link}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(self.path / link)

    def prune(self) -> None:
        """Delete checkpoints that neither ``best`` nor ``last`` points at, and what a killed save left behind."""
        kept = {os.readlink(self.path / link) for link in ("best", "last") if (self.path / link).is_symlink()}
        for old in [*self.path.glob("step-*"), *self.path.glob(".step-*.writing-*")]:
            if old.name not in kept:
                shutil.rmtree(old, ignore_errors=True)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one validation's figures."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def cut_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines after ``step`` (a resumed run writes them again) and return the rest."""
        lines = [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["step"] <= step]
        self.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        return kept
