"""A run's checkpoint made fit for serving: weights rounded, optimizer state left out, the loss measured again."""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoint.files import read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files, load_checkpoint
from training.config import TrainingError
from training.data import Dataset, Text
from training.evaluate import full_loss
from training.run_directory import writing


def export_checkpoint(source: Path, out: Path, dtype: str, text: Text) -> float:
    """Write ``out`` with weights stored as ``dtype``; the full-validation loss of the rounded weights. Raises TrainingError."""
    checkpoint = load_checkpoint(source)
    if text.sha256 != checkpoint.manifest["data"]["sha256"]:
        raise TrainingError(f"{text.name} is not the text that {source} was trained on: its loss would not compare; pass it with --data")
    data = Dataset(text, checkpoint.tokenizer, checkpoint.config.block_size, torch.device("cpu"))
    files = checkpoint_files(checkpoint.model, checkpoint.tokenizer, data.val[:256].tolist(), getattr(torch, dtype))
    manifest = {k: v for k, v in checkpoint.manifest.items() if k not in ("format", "files")}
    for tensor in checkpoint.model.state_dict().values():
        tensor.copy_(tensor.to(getattr(torch, dtype)))
    loss = full_loss(checkpoint.model, data.val)
    with writing(out):
        losses = {"val_loss": round(loss, 6), "val_loss_per_character": round(loss * data.tokens_per_character, 6)}
        write_checkpoint(out, files, manifest | losses | {"weights_dtype": dtype})
    read_checkpoint(out)
    return loss


def refuse_full(out: Path) -> None:
    """Make way for ``out``: an empty directory is removed, anything else is an error (TrainingError)."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists() or out.is_symlink():
        raise TrainingError(f"{out} is not empty: choose another directory")
