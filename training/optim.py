"""The optimizers and their learning rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.gpt import GPT
from training.config import TrainConfig
from training.muon import Muon

Optimizers = dict[str, torch.optim.Optimizer]


def build_optimizers(model: GPT, config: TrainConfig, dtype: torch.dtype) -> Optimizers:
    """AdamW for everything (Loshchilov and Hutter 2019), or Muon for the blocks' matrices and AdamW for the rest.

    Decay is for matrices, never for biases, LayerNorms and embeddings. On CUDA learning rates are tensors, so that a captured step can
    follow the schedule. ``dtype`` is what the device multiplies fast.
    """
    muon, decayed, plain = split_parameters(model, config.optimizer == "muon")
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    device = model.lm_head.weight.device
    on_cuda = device.type == "cuda"

    def rate(value: float) -> float | Tensor:
        return torch.tensor(value, device=device) if on_cuda else value

    adamw = torch.optim.AdamW(groups, lr=rate(config.learning_rate), betas=(config.beta1, config.beta2), fused=True, capturable=on_cuda)
    if not muon:
        return {"adamw": adamw}
    names = {parameter: name for name, parameter in model.named_parameters()}
    stacked = [parameter for parameter in muon if ".qkv." in names[parameter]]
    whole = [parameter for parameter in muon if ".qkv." not in names[parameter]]
    matrices: list[dict[str, Any]] = [
        {"params": stacked, "parts": 3},
        {"params": whole},
    ]  # queries, keys and values are matrices of their own
    return {"adamw": adamw, "muon": Muon(matrices, lr=rate(config.muon_lr), weight_decay=config.weight_decay, dtype=dtype)}


def split_parameters(model: GPT, use_muon: bool) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Parameters for Muon, for AdamW with decay, and for AdamW without."""
    muon: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2 or "embedding" in name:
            plain.append(parameter)
        elif use_muon and name.startswith("blocks."):
            muon.append(parameter)
        else:
            decayed.append(parameter)
    return muon, decayed, plain


def schedule(config: TrainConfig, step: int) -> float:
    """The part of the peak learning rate that a step uses, counted from 0: linear warm-up, then ``config.schedule``."""
    if step < config.warmup_iters:
        return (step + 1) / config.warmup_iters
    floor = min(1.0, config.min_lr / config.learning_rate) if config.learning_rate else 1.0
    if config.schedule == "cosine":
        progress = (step - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
        return floor + 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * (1 - floor)
    if config.schedule == "wsd":
        left = (config.max_iters - step) / max(1.0, config.decay_fraction * config.max_iters)
        return floor + min(1.0, left) * (1 - floor)
    return 1.0


def dropout_at(config: TrainConfig, step: int) -> float:
    """The dropout of a step, in the 256ths that a mask can have."""
    if not config.dropout_descent or config.schedule != "wsd" or step < config.warmup_iters:
        return config.dropout
    left = (config.max_iters - step) / max(1.0, config.decay_fraction * config.max_iters)
    return round(config.dropout * min(1.0, left) * 256) / 256


def set_learning_rates(optimizers: Optimizers, config: TrainConfig, step: int) -> None:
    """Enter the learning rates of a step; where one is a tensor its value is replaced, without waiting for the device."""
    factor = schedule(config, step)
    for name, optimizer in optimizers.items():
        rate = factor * (config.muon_lr if name == "muon" else config.learning_rate)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def named_state(model: GPT, optimizers: Optimizers) -> dict[str, Tensor]:
    """The optimizers' tensors by ``parameter/field``, for a file that needs no pickle."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{field}": value.detach().cpu().contiguous()
        for optimizer in optimizers.values()
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def load_named_state(model: GPT, optimizers: Optimizers, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`named_state`. Raises ValueError for a tensor that fits no parameter."""
    parameters = dict(model.named_parameters())
    owner = {p: optimizer for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        if name not in parameters or value.shape not in ((), parameters[name].shape):
            raise ValueError(f"tensor {key!r} of shape {tuple(value.shape)} fits no parameter")
        owner[parameters[name]].state[parameters[name]][field] = value.to(parameters[name].device)


class MovingAverage:
    """``model`` holds the average; early on the decay is smaller, so that the random beginning is soon forgotten."""

    def __init__(self, source: GPT, decay: float) -> None:
        self.model = copy.deepcopy(source)
        self.decay = decay
        self.own: list[Tensor] = list(self.model.parameters())
        self.source: list[Tensor] = list(source.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.own, self.source, 1 - decay)
