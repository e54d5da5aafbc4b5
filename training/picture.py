"""The loss of one run or of several, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.config import TrainingError
from training.run_directory import Point, RunDirectory, read_metrics

COLOURS = ("#1f5f8b", "#9a6b3f", "#3f7d4e", "#8b2f4f", "#6a5a9c", "#b5892e", "#3c8c8c", "#777777")


def loss_picture(runs: Mapping[str, Sequence[Point]], title: str) -> bytes:
    """Validation (solid) and training loss (pale) against steps, one colour for each named run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120)  # no pyplot: it would keep every figure, and look for a screen
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(runs.items()):
        colour, prefix = COLOURS[number % len(COLOURS)], f"{name}: " if name else ""
        steps = [point.step for point in curve]
        marker = "o" if len(curve) == 1 else None
        best = min(curve, key=lambda point: point.val_loss)
        axes.plot(steps, [p.train_loss for p in curve], color=colour, alpha=0.4, marker=marker, label=f"{prefix}training (dropout on)")
        if not name and any(p.train_loss_eval is not None for p in curve):
            quiet = [float("nan") if p.train_loss_eval is None else p.train_loss_eval for p in curve]
            axes.plot(steps, quiet, ":", color=colour, alpha=0.6, marker=marker, label="training (dropout off)")
        axes.plot(steps, [p.val_loss for p in curve], color=colour, marker=marker, label=f"{prefix}validation, whole")
        axes.plot(best.step, best.val_loss, "o", color=colour)
        axes.annotate(f"{best.val_loss:.4f}", (best.step, best.val_loss), xytext=(0, -14), textcoords="offset points", ha="center")
    axes.set(xlabel="step", ylabel="nats per token", title=title.replace("$", r"\$"))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


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
