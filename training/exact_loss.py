"""What serving costs: the loss in exact arithmetic, whose weights and activations are integers, beside that of float32."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import Arithmetic
from model.exact.network import Cache, ExactModel
from model.gpt import GPT
from model.sampling import log_probabilities
from training.dataset import Dataset
from training.evaluate import bits_per_byte, mean_losses, window_batches

MOST_COST = 0.001
"""Nats per token that activations of 8 bits may cost; where it is more, they get 16."""
NUM_MEASURED = 8192
"""Tokens that this is measured on. Both losses are of the same tokens, so their difference is steadier than either."""
ROWS = 4
"""Windows side by side: what they take fits the processor's cache."""


def exact_model(model: GPT, arithmetic: Arithmetic | None = None) -> ExactModel:
    """The model as it is served, with its own arithmetic or another one."""
    tensors = {name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()}
    return ExactModel(replace(model.config, arithmetic=arithmetic or model.config.arithmetic), tensors)


def exact_loss(model: ExactModel, ids: Tensor, *, num_tokens: int = 0) -> float:
    """Mean loss in nats per token over the windows of :func:`training.evaluate.mean_losses`, in exact arithmetic."""
    parts = [part for windows in window_batches(ids, model.config.block_size, num_tokens) for part in torch.split(windows, ROWS)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy computes outside of Python's lock; the logits are the same however shared out
        sums = list(pool.map(partial(loss_sum, model), parts))
    return sum(sums) / sum(part[:, 1:].numel() for part in parts)


def loss_sum(model: ExactModel, windows: Tensor) -> float:
    """The losses of all targets of (R, N + 1) windows, summed."""
    tokens = windows.cpu().numpy().astype(np.int64)
    logits = model.logits(model.hidden(tokens[:, :-1], Cache(model.config, len(tokens))))
    return -float(np.take_along_axis(log_probabilities(logits), tokens[:, 1:, None], -1).sum())


def exact_losses(model: GPT, data: Dataset) -> dict[str, Any]:
    """The validation loss as the service computes, under the names of ``python -m training eval --exact``."""
    loss = exact_loss(exact_model(model), data.val)
    return {
        "exact_loss": round(loss, 6),
        "exact_loss_per_character": round(loss * data.tokens_per_character, 6),
        "exact_bits_per_byte": round(bits_per_byte(loss, data.tokens_per_byte), 6),
        "arithmetic": model.config.arithmetic,
    }


def choose_arithmetic(model: GPT, ids: Tensor) -> tuple[Arithmetic, float]:
    """The fewest bits that cost at most `MOST_COST` on a text, and what they cost in nats per token; 16 bits where none do."""
    float_loss = mean_losses(model, ids, [1.0], num_tokens=NUM_MEASURED)[0]
    costs: dict[Arithmetic, float] = {}
    for arithmetic in ("w8a8", "w8a16"):
        costs[arithmetic] = exact_loss(exact_model(model, arithmetic), ids, num_tokens=NUM_MEASURED) - float_loss
        if costs[arithmetic] <= MOST_COST:
            break
    return arithmetic, costs[arithmetic]
