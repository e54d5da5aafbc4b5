"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch

from model.gpt import GPT
from training.config import TrainConfig


def build_optimizer(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019): decay for matrices, none for biases, LayerNorms and embeddings."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim == 2 and "embedding" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then constant or half a cosine down to ``min_lr``."""
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / config.warmup_iters
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
    floor = min(config.min_lr, config.learning_rate)
    return floor + 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * (config.learning_rate - floor)


def named_state(model: GPT, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """The optimizer's tensors by ``parameter/field``, for a file that needs no pickle."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{field}": value.detach().cpu().contiguous()
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def load_named_state(model: GPT, optimizer: torch.optim.AdamW, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of :func:`named_state`."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        device = "cpu" if field == "step" and parameters[name].device.type == "cpu" else parameters[name].device
        optimizer.state[parameters[name]][field] = value.to(device)
