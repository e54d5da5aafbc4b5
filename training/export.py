"""A run's checkpoint made fit for serving: weights rounded, optimizer state left out, the loss measured again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model.checkpoint.files import read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files, load_checkpoint
from model.checkpoint.manifest import checkpoint_directory
from model.draft import FILE as DRAFT
from model.draft import count_contexts, save_draft
from model.tokenizer.base import Tokenizer
from training.config import TrainingError
from training.data import Text, load_text
from training.dataset import Dataset, split_point, token_ids
from training.evaluate import describe, measure
from training.exact_loss import choose_arithmetic
from training.run_directory import writing

MAX_COUNTED = 1 << 22
"""Tokens of a text that are counted, its last ones: more would not fit into the table anyway."""


def export_checkpoint(source: Path, out: Path, dtype: str, data_files: Sequence[str] | None, val_files: Sequence[str] | None) -> float:
    """Write ``out`` with weights stored as ``dtype``; the full-validation loss of the rounded weights. Raises TrainingError."""
    checkpoint = load_checkpoint(source)
    text = load_text(data_files, val_files, keep_line_ends=checkpoint.manifest.get("train", {}).get("keep_line_ends", False))
    manifest = {k: v for k, v in checkpoint.manifest.items() if k not in ("format", "files")}
    if text.sha256 != manifest.get("data", {"sha256": text.sha256})["sha256"]:  # an imported checkpoint knows no text of its own
        raise TrainingError(f"{text.name} is not the text that {source} was trained on: its loss would not compare; pass it with --data")
    held_back = manifest.get("train", {}).get("calibration_fraction", 0.0)
    data = Dataset(text, checkpoint.tokenizer, checkpoint.config.block_size, torch.device("cpu"), held_back)
    for tensor in checkpoint.model.state_dict().values():
        tensor.copy_(tensor.to(getattr(torch, dtype)))
    arithmetic, cost = choose_arithmetic(checkpoint.model, data.val)
    checkpoint.model.config = replace(checkpoint.config, arithmetic=arithmetic)
    files = checkpoint_files(checkpoint.model, checkpoint.tokenizer, data.val[:256].tolist(), getattr(torch, dtype))
    losses = describe(measure(checkpoint.model, data), data) | {"exact_cost": round(cost, 6)}
    with writing(out):
        write_checkpoint(out, files, manifest | losses | {"weights_dtype": dtype})
    read_checkpoint(out)
    write_draft(out, checkpoint.tokenizer, text)
    return float(losses["val_loss"])


def write_draft(checkpoint: Path, tokenizer: Tokenizer, text: Text) -> int:
    """Count what follows what in the training part of a text, for speculation to guess from; the file's bytes. Raises TrainingError."""
    ids = token_ids(text, tokenizer)
    training = ids[: len(ids) if text.validation else split_point(len(ids))]
    data = save_draft(count_contexts(np.asarray(training[-MAX_COUNTED:]), tokenizer.vocab_size))
    checkpoint = checkpoint_directory(checkpoint)
    temporary = checkpoint / f".{DRAFT}.{os.getpid()}"
    with writing(checkpoint / DRAFT):
        temporary.write_bytes(data)
        temporary.replace(checkpoint / DRAFT)
    return len(data)


def refuse_full(out: Path) -> None:
    """Make way for ``out``: an empty directory is removed, anything else is an error (TrainingError)."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists() or out.is_symlink():
        raise TrainingError(f"{out} is not empty: choose another directory")
