"""What a person looks at while a run goes on: the picture of the loss, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint
from model.generate import generate
from model.gpt import GPT
from model.params import SamplingParams
from model.tokenizer import CharTokenizer


def draw_loss(curve: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """The training and validation loss against steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    steps = [point["step"] for point in curve]
    axes.plot(steps, [point["train_loss"] for point in curve], color="#9a6b3f", label="training (dropout on)")
    axes.plot(steps, [point["val_loss"] for point in curve], color="#1f5f8b", label="validation, whole")
    best = min(curve, key=lambda point: point["val_loss"])
    axes.plot(best["step"], best["val_loss"], "o", color="#1f5f8b")
    axes.annotate(f"{best['val_loss']:.4f}", (best["step"], best["val_loss"]), xytext=(0, -14), textcoords="offset points", ha="center")
    axes.set(xlabel="step", ylabel="nats per token", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    plt.close(figure)
    temporary.replace(path)


def sample_text(model: GPT, tokenizer: CharTokenizer, seed: int, length: int, start: int) -> str:
    """A sample from the naive sampler, plain multinomial."""
    return tokenizer.decode(list(generate(model, [], SamplingParams(max_new_tokens=length, seed=seed), start=start)))


def overfitting(curve: Sequence[dict[str, Any]]) -> str | None:
    """A clear word when validation has risen for two evaluations while training fell, else None."""
    if len(curve) < 3:
        return None
    first, second, third = curve[-3:]
    rising = first["val_loss"] < second["val_loss"] < third["val_loss"]
    falling = first["train_loss"] > second["train_loss"] > third["train_loss"]
    if not (rising and falling):
        return None
    best = min(curve, key=lambda point: point["val_loss"])
    return (
        f"overfitting: validation rises ({first['val_loss']:.4f} to {third['val_loss']:.4f}) while training falls; best/ keeps step "
        f"{best['step']}. More dropout, a smaller model, more text or --patience 3 would help."
    )


def describe(checkpoint: Checkpoint) -> str:
    """One line about a checkpoint."""
    manifest = checkpoint.manifest
    return f"{checkpoint.id[:19]}… {checkpoint.config.num_parameters:,} parameters, step {manifest.get('steps')}"
