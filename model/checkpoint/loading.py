"""Checkpoints as torch sees them: a directory becomes a model, a model becomes the files of a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from model.checkpoint.files import CONFIG, MODEL, SELFTEST, TOKENIZER, check_values, dump_json, read_checkpoint
from model.config import GPTConfig
from model.exact.digests import answers_of
from model.exact.network import ExactModel
from model.generate import next_logits
from model.gpt import GPT
from model.tokenizer.base import Tokenizer

SELFTEST_LENGTHS = (1, 17, 100, 256)
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""Largest difference of a logit that the self-test accepts, by the dtype that the engine computes in."""


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

    ``sample_ids``: text of the kind that the model was trained on, whose beginnings become the self-test.
    """
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    rounded = {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in rounded.items():
        check_values(MODEL, name, tensor.numpy())
    return {
        MODEL: safetensors.torch.save(state),
        CONFIG: dump_json(model.config.to_json()),
        TOKENIZER: dump_json(tokenizer.to_json()),
        SELFTEST: dump_json(selftest(model.config, rounded, sample_ids)),
    }


def selftest(config: GPTConfig, weights: Mapping[str, Tensor], sample_ids: Sequence[int]) -> dict[str, Any]:
    """Known answers: digests in exact arithmetic, and logits of the next token by the naive sampler in float32."""
    model = GPT(config)
    model.load_state_dict(dict(weights))
    lengths = sorted({min(n, config.block_size, len(sample_ids)) for n in SELFTEST_LENGTHS})
    cases = []
    for n in lengths:
        logits = next_logits(model.eval(), sample_ids[:n], stride=1)
        cases.append({"prompt": list(sample_ids[:n]), "logits": [round(x, 5) for x in logits.tolist()]})
    exact = ExactModel(config, {name: tensor.numpy() for name, tensor in weights.items()})
    return {**answers_of(exact, sample_ids).to_json(), "tolerance": TOLERANCE, "cases": cases}
