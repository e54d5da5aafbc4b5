"""A run's state as the files of a checkpoint, and back.

Besides what serving needs, a checkpoint of a run holds ``optimizer.safetensors`` and ``state.json``. There is no generator and no
data cursor in it: batches, dropout and samples are functions of (seed, step).
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from model.checkpoint.files import dump_json, read_verified
from model.checkpoint.manifest import CheckpointError, parse_json, read_manifest
from model.gpt import GPT
from training.config import TrainConfig
from training.data import Text
from training.dataset import Dataset
from training.device import device_name, git_commit
from training.evaluate import bits_per_byte
from training.optim import Optimizers, load_named_state, named_state
from training.run_directory import Point

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
RAW = "raw:"
"""Prefix of the weights themselves in ``optimizer.safetensors``, when what is saved as the model is their moving average."""


@dataclass(slots=True)
class TrainState:
    """Where a run stands, beside its tensors."""

    step: int = 0
    """Steps done."""
    best_loss: float | None = None
    """Lowest validation loss so far."""
    best_step: int = 0
    wall_time: float = 0.0
    """Seconds spent training, over all resumptions."""


def state_files(state: TrainState, losses: list[float], model: GPT, optimizers: Optimizers, *, averaged: bool) -> dict[str, bytes]:
    """The two files that resuming needs."""
    tensors = named_state(model, optimizers)
    if averaged:
        tensors |= {RAW + name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return {OPTIMIZER: safetensors.torch.save(tensors), STATE: dump_json({**asdict(state), "losses": losses})}


def load_state(path: Path, model: GPT, optimizers: Optimizers) -> tuple[TrainState, list[float]]:
    """Fill the optimizers (and the raw weights, if they are there) from a checkpoint. Raises CheckpointError."""
    contents = read_verified(read_manifest(path))
    for name in (OPTIMIZER, STATE):
        if name not in contents:
            raise CheckpointError(f"{path} has no {name}: it was exported for serving, nothing can be resumed from it")
    document = parse_json(path / STATE, contents[STATE])
    try:
        tensors = safetensors.torch.load(contents[OPTIMIZER])
        raw = {name.removeprefix(RAW): tensors.pop(name) for name in list(tensors) if name.startswith(RAW)}
        if raw:
            model.load_state_dict(raw)
        load_named_state(model, optimizers, tensors)
    except Exception as error:  # safetensors raises its own type, load_state_dict RuntimeError
        raise CheckpointError(f"{path / OPTIMIZER} does not fit the model: {' '.join(str(error).split())}") from None
    try:
        losses = [float(x) for x in document.pop("losses")]
        state = TrainState(**document)
        if type(state.step) is not int or state.step < 0 or type(state.best_step) is not int:
            raise TypeError
        return replace(state, wall_time=float(state.wall_time)), losses
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path / STATE} does not hold a run's state") from None


def protocol(config: TrainConfig, text: Text, data: Dataset) -> str:
    """How the validation loss was measured."""
    where = f"all of {text.validation.name}" if text.validation else "the last 10 %"
    if 0 < config.eval_tokens < data.num_targets:
        return f"mean over a sample of about {config.eval_tokens} tokens of {where}, evenly spaced windows of {config.block_size}"
    return f"exact mean over {where}, consecutive windows of {config.block_size}"


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def build_manifest(
    state: TrainState,
    curve: list[Point],
    losses: list[float],
    config: TrainConfig,
    text: Text,
    data: Dataset,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Where the weights come from. ``val_loss`` (nats per token) is null when these very weights have not been validated."""
    measured = curve[-1] if curve and curve[-1].step == state.step else None
    mean = sum(losses) / len(losses) if losses else None
    val_loss = measured.val_loss if measured else None
    return {
        "train_loss": measured.train_loss if measured else mean,
        "train_loss_eval": measured.train_loss_eval if measured else None,
        "val_loss": val_loss,
        "val_loss_per_character": None if val_loss is None else val_loss * data.tokens_per_character,
        "bits_per_byte": None if val_loss is None else bits_per_byte(val_loss, data.tokens_per_byte),
        "temperature": measured.temperature if measured else None,
        "val_loss_calibrated": measured.val_loss_calibrated if measured else None,
        "val_loss_protocol": protocol(config, text, data),
        "steps": state.step,
        "seed": config.seed,
        "data": {"name": text.name, "sha256": text.sha256, "characters": text.characters},
        "train": config.to_json(),
        "curve": [asdict(point) for point in curve],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": device_name(data.train.device),
        "dtype": str(dtype).removeprefix("torch."),
        "wall_time_s": round(state.wall_time, 1),
        "git_commit": git_commit(),
    }
