"""Checkpoints as torch sees them: a directory becomes a model, a model becomes the files of a directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from model.checkpoint.files import CONFIG, MODEL, SELFTEST, TOKENIZER, check_values, dump_json, read_checkpoint
from model.config import GPTConfig
from model.exact.digests import answers_of
from model.exact.network import ExactModel
from model.gpt import GPT
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A verified checkpoint with its model in evaluation mode: ``model(ids)`` maps (B, T) token ids to (B, T, V) logits."""

    model: GPT
    tokenizer: Tokenizer
    config: GPTConfig
    manifest: dict[str, Any]
    id: str


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedCheckpoint:
    """Read, verify and build. Raises CheckpointError, in one line that names the file."""
    checkpoint = read_checkpoint(path)
    model = GPT(checkpoint.config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()})
    model.to(device=device, dtype=dtype).eval()
    return LoadedCheckpoint(
        model=model,
        tokenizer=checkpoint.tokenizer,
        config=checkpoint.config,
        manifest=checkpoint.manifest,
        id=checkpoint.id,
    )


def checkpoint_files(model: GPT, tokenizer: Tokenizer, sample_ids: Sequence[int], dtype: torch.dtype = torch.float32) -> dict[str, bytes]:
    """The files of a checkpoint but its manifest, the weights rounded to ``dtype``.

    ``sample_ids``: text of the kind that the model was trained on, of which the self-test is made.
    """
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    rounded = {name: tensor.float().numpy() for name, tensor in state.items()}
    for name, weights in rounded.items():
        check_values(MODEL, name, weights)
    return {
        MODEL: safetensors.torch.save(state),
        CONFIG: dump_json(model.config.to_json()),
        TOKENIZER: dump_json(tokenizer.to_json()),
        SELFTEST: dump_json(answers_of(ExactModel(model.config, rounded), sample_ids).to_json()),
    }
