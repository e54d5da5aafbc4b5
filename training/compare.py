"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.config import TrainingError
from training.picture import loss_picture
from training.run_directory import RunDirectory, read_metrics


def compare(runs: Sequence[Path]) -> tuple[str, bytes]:
    """A Markdown table and a picture (PNG) of some runs. Raises TrainingError for a directory that is no run."""
    curves = {str(run): read_metrics(run) for run in runs}
    for name, curve in curves.items():
        if not curve:
            raise TrainingError(f"{name} has no validation yet")
    rows = ["| run | context | batch | seed | steps | best validation | at step | training there |", "|---|---|---|---|---|---|---|---|"]
    for name, curve in curves.items():
        config, best = RunDirectory.open(Path(name))[1].train, min(curve, key=lambda point: point.val_loss)
        figures = (
            config.block_size,
            config.batch_size,
            config.seed,
            curve[-1].step,
            f"{best.val_loss:.4f}",
            best.step,
            f"{best.train_loss:.4f}",
        )
        rows.append(f"| {name} | {' | '.join(map(str, figures))} |")
    return "\n".join(rows), loss_picture(curves, "validation loss")
