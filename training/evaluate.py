"""The one way that a loss is measured here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.checkpoint.loading import LoadedCheckpoint
from model.gpt import GPT
from training.data import Dataset, Text

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
    batches = list(zip(torch.split(inputs[:whole].view(-1, block), rows), torch.split(targets[:whole].view(-1, block), rows), strict=True))
    if whole < len(inputs):
        batches.append((inputs[whole:][None], targets[whole:][None]))
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    for x, y in batches:
        logits = model(x.to(device)).float()
        total += F.cross_entropy(logits.flatten(0, 1), y.to(device).flatten(), reduction="sum")
    model.train(training)
    return total.item() / len(inputs)


def evaluate_text(checkpoint: LoadedCheckpoint, text: Text) -> dict[str, Any]:
    """A checkpoint's loss on the validation part of a text, beside what its manifest says. Raises TrainingError, UnknownCharacterError."""
    config, device = checkpoint.config, checkpoint.model.lm_head.weight.device
    data = Dataset(text, checkpoint.tokenizer, config.block_size, device)
    loss = full_loss(checkpoint.model, data.val)
    return {
        "val_loss": round(loss, 6),
        "val_loss_per_character": round(loss * data.tokens_per_character, 6),
        "manifest_val_loss": checkpoint.manifest.get("val_loss"),
        "tokens": len(data.val) - 1,
        "block_size": config.block_size,
        "same_text": text.sha256 == checkpoint.manifest.get("data", {}).get("sha256"),
    }
