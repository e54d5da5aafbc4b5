"""The one way that a loss is measured here."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.gpt import GPT

EVAL_TOKENS = 16_384


@torch.no_grad()
def full_loss(model: GPT, ids: Tensor) -> float:
    """Mean loss in nats per token over every target of ``ids`` (1-D), in float32, with dropout off.

    Consecutive, non-overlapping windows of ``block_size``, the last one shorter: exact and deterministic, no sampling.
    """
    block = model.config.block_size
    device = model.lm_head.weight.device
    inputs, targets = ids[:-1].long(), ids[1:].long()
    whole = len(inputs) // block * block
    rows = max(1, EVAL_TOKENS // block)
    batches = list(zip(inputs[:whole].view(-1, block).split(rows), targets[:whole].view(-1, block).split(rows), strict=True))
    if whole < len(inputs):
        batches.append((inputs[whole:][None], targets[whole:][None]))
    training = model.training
    model.eval()
    total = 0.0
    for x, y in batches:
        logits = model(x.to(device)).float()
        total += F.cross_entropy(logits.flatten(0, 1), y.to(device).flatten(), reduction="sum").item()
    model.train(training)
    return total / len(inputs)
