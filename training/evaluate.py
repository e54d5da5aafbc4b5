"""The one way that a loss is measured here.

Losses are exact means over consecutive, non-overlapping windows of ``block_size``, the last one shorter, in float32 with dropout off: the
same weights always have the same loss. A sample of a long text is evenly spaced windows, always the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.checkpoint.loading import LoadedCheckpoint
from model.gpt import GPT
from training.data import Text
from training.dataset import Dataset
from training.distributed import ONE_PROCESS, World

EVAL_TOKENS = 16_384
"""Tokens of one forward pass."""
LEAST_CALIBRATION = 1000
"""Tokens below which no temperature is looked for: it would be noise."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What one validation measures, in nats per token, dropout off."""

    val_loss: float
    train_loss_eval: float
    """Over as much of the training text as there is to validate with."""
    temperature: float | None
    """The best one for the slice of the training text that is never trained on; None where there is no such slice."""
    val_loss_calibrated: float | None
    """``val_loss`` with logits divided by that temperature."""


def measure(model: GPT, data: Dataset, *, num_tokens: int = 0, world: World = ONE_PROCESS) -> Losses:
    """All losses of a model; with ``num_tokens`` validation is a sample of about so many tokens."""
    temperature = find_temperature(model, data.calibration, world) if len(data.calibration) >= LEAST_CALIBRATION else None
    temperatures = [1.0] if temperature is None else [1.0, temperature]
    val = mean_losses(model, data.val, temperatures, num_tokens=num_tokens, world=world)
    train = mean_losses(model, data.train, [1.0], num_tokens=min(num_tokens or data.num_targets, data.num_targets), world=world)
    return Losses(val[0], train[0], temperature, None if temperature is None else val[1])


def full_loss(model: GPT, ids: Tensor) -> float:
    """Mean loss in nats per token over every target of ``ids`` (N,)."""
    return mean_losses(model, ids, [1.0])[0]


@torch.no_grad()
def mean_losses(model: GPT, ids: Tensor, temperatures: Sequence[float], *, num_tokens: int = 0, world: World = ONE_PROCESS) -> list[float]:
    """Mean loss in nats per token at each temperature, over every target of ``ids`` (N,) or a sample of about ``num_tokens``.

    Several processes share the windows out, so that none waits longer for another than a validation takes.
    """
    device = model.lm_head.weight.device
    training = model.training
    model.eval()
    sums = torch.zeros(len(temperatures) + 1, dtype=torch.float64, device=device)  # and the number of targets
    for number, windows in enumerate(window_batches(ids, model.config.block_size, num_tokens)):
        if number % world.size == world.rank:
            windows = windows.to(device).long()
            logits, targets = model(windows[:, :-1]).float().flatten(0, 1), windows[:, 1:].flatten()
            sums[-1] += targets.numel()
            for i, temperature in enumerate(temperatures):
                scaled = logits if temperature == 1 else logits / temperature
                sums[i] += F.cross_entropy(scaled, targets, reduction="sum")
    model.train(training)
    sums = world.dist_mean(sums)
    losses: list[float] = (sums[:-1] / sums[-1]).tolist()
    return losses


def window_batches(ids: Tensor, block: int, num_tokens: int) -> Iterator[Tensor]:
    """(R, T + 1) windows, each with the token that its last position predicts; the shorter one at the end alone."""
    count = len(ids) - 1
    starts = torch.arange(0, count // block * block, block)
    sampled = 0 < num_tokens < count and len(starts) > 0
    if sampled:
        wanted = max(1, min(num_tokens // block, len(starts)))
        starts = starts[torch.arange(wanted) * len(starts) // wanted]
    columns = torch.arange(block + 1)
    for part in torch.split(starts, max(1, EVAL_TOKENS // block)):
        if len(part):
            yield ids[(part[:, None] + columns).to(ids.device)]
    if count % block and not sampled:
        yield ids[count // block * block :][None]


def find_temperature(model: GPT, ids: Tensor, world: World = ONE_PROCESS) -> float:
    """The temperature from 0.5 to 2, to 0.02, with the lowest loss on ``ids``.

    Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks", §4.2.
    """
    coarse = [0.5 + 0.1 * i for i in range(16)]
    middle = coarse[lowest(mean_losses(model, ids, coarse, world=world))]
    fine = [middle + 0.02 * i for i in range(-4, 5)]
    return round(fine[lowest(mean_losses(model, ids, fine, world=world))], 2)


def lowest(losses: Sequence[float]) -> int:
    """Where the lowest stands."""
    return min(range(len(losses)), key=losses.__getitem__)


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """A loss in nats per token as bits per byte of UTF-8, which compares between tokenizers and languages."""
    return loss * tokens_per_byte / math.log(2)


def describe(losses: Losses, data: Dataset) -> dict[str, Any]:
    """The losses under the names that manifests have for them."""
    return {
        "val_loss": round(losses.val_loss, 6),
        "val_loss_per_character": round(losses.val_loss * data.tokens_per_character, 6),
        "bits_per_byte": round(bits_per_byte(losses.val_loss, data.tokens_per_byte), 6),
        "train_loss_eval": round(losses.train_loss_eval, 6),
        "temperature": losses.temperature,
        "val_loss_calibrated": None if losses.val_loss_calibrated is None else round(losses.val_loss_calibrated, 6),
    }


def float_losses(model: GPT, data: Dataset) -> dict[str, Any]:
    """All losses in float32."""
    return describe(measure(model, data), data)


def evaluate_text(checkpoint: LoadedCheckpoint, text: Text, loss: Callable[[GPT, Dataset], dict[str, Any]]) -> dict[str, Any]:
    """What ``loss`` measures on a text, beside what the manifest says. Raises TrainingError, UnknownCharacterError."""
    config, manifest, device = checkpoint.config, checkpoint.manifest, checkpoint.model.lm_head.weight.device
    same_text = text.sha256 == manifest.get("data", {}).get("sha256")
    held_back = manifest.get("train", {}).get("calibration_fraction", 0.0) if same_text else 0.0
    data = Dataset(text, checkpoint.tokenizer, config.block_size, device, held_back)
    return loss(checkpoint.model, data) | {
        "manifest_val_loss": manifest.get("val_loss"),
        "tokens": data.num_targets,
        "block_size": config.block_size,
        "same_text": same_text,
    }
