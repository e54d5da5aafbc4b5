"""The optimizers and their learning rate."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.gpt import GPT
from training.config import TrainConfig, TrainingError
from training.muon import Muon

Optimizers = dict[str, torch.optim.Optimizer]


def build_optimizers(model: GPT, config: TrainConfig, dtype: torch.dtype) -> Optimizers:
    """AdamW for everything (Loshchilov and Hutter 2019), or Muon for the blocks' matrices and AdamW for the rest.

    Parameters whose factor is 0 are frozen: they get no gradient. On CUDA learning rates are tensors, so that a captured step can follow
    the schedule. ``dtype`` is what the device multiplies fast. Raises TrainingError for a pattern that fits nothing.
    """
    factors = find_factors(model, config)
    groups: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(factors[name] > 0)
        if factors[name] > 0:
            groups[kind_of(name, parameter, config.optimizer == "muon"), factors[name]].append(parameter)
    if not groups:
        raise TrainingError("--lr-factors freezes every parameter: there is nothing left to train")
    device = model.lm_head.weight.device
    on_cuda = device.type == "cuda"

    def of(kind: str, peak: float, **rest: Any) -> list[dict[str, Any]]:
        """The groups of a kind, each with a learning rate of its own."""
        rate: Callable[[], float | Tensor] = lambda: torch.tensor(peak, device=device) if on_cuda else peak  # noqa: E731
        return [
            {"params": parameters, "lr": rate(), "lr_factor": factor, **rest}
            for (of_kind, factor), parameters in groups.items()
            if of_kind == kind
        ]

    adamw = of("decayed", config.learning_rate, weight_decay=config.weight_decay)
    adamw += of("embedding", config.learning_rate, weight_decay=config.embedding_decay)
    adamw += of("plain", config.learning_rate, weight_decay=0.0)
    muon = of("stacked", config.muon_lr, parts=3) + of("matrix", config.muon_lr)
    optimizers: Optimizers = {}
    if adamw:
        optimizers["adamw"] = torch.optim.AdamW(adamw, betas=(config.beta1, config.beta2), fused=True, capturable=on_cuda)
    if muon:
        optimizers["muon"] = Muon(muon, lr=config.muon_lr, weight_decay=config.weight_decay, dtype=dtype)
    return optimizers


def kind_of(name: str, parameter: nn.Parameter, use_muon: bool) -> str:
    """How a parameter is updated: by AdamW with decay, as an embedding, without decay (biases, LayerNorms), or by Muon.

    Queries, keys and values lie in one parameter and are three matrices to Muon.
    """
    if "embedding" in name:
        return "embedding"
    if parameter.ndim != 2:
        return "plain"
    if use_muon and name.startswith("blocks."):
        return "stacked" if ".qkv." in name else "matrix"
    return "decayed"


def find_factors(model: GPT, config: TrainConfig) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by. Raises TrainingError for a pattern that fits no name."""
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for pattern, factor in reversed(config.parse_lr_factors()):  # so that the first one counts
        fitting = [name for name in factors if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise TrainingError(f"--lr-factors: no parameter is called {pattern!r}; there are, for one, {', '.join(list(factors)[:4])}")
        factors |= dict.fromkeys(fitting, factor)
    return factors


def schedule(config: TrainConfig, step: int) -> float:
    """The part of the peak learning rate that a step uses, counted from 0: linear warm-up, then ``config.schedule``."""
    if step < config.warmup_iters:
        return (step + 1) / config.warmup_iters
    floor = min(1.0, config.min_lr / config.learning_rate) if config.learning_rate else 1.0
    if config.schedule == "cosine":
        progress = (step - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
        return floor + 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * (1 - floor)
    if config.schedule == "wsd":
        return floor + descent(config, step) * (1 - floor)
    return 1.0


def dropout_at(config: TrainConfig, step: int) -> float:
    """The dropout of a step, in the 256ths that a mask can have."""
    if not config.dropout_descent or config.schedule != "wsd" or step < config.warmup_iters:
        return config.dropout
    return round(config.dropout * descent(config, step) * 256) / 256


def descent(config: TrainConfig, step: int) -> float:
    """WSD's part of the peak: 1 on the plateau, then straight down to 0 at the end."""
    return min(1.0, (config.max_iters - step) / max(1.0, config.decay_fraction * config.max_iters))


def plateau_end(config: TrainConfig) -> int:
    """Steps after which WSD's descent begins: the state there is where a longer run goes on from. 0 for other schedules."""
    if config.schedule != "wsd":
        return 0
    return next((step for step in range(config.max_iters, 0, -1) if descent(config, step) == 1), 0)


def set_learning_rates(optimizers: Optimizers, config: TrainConfig, step: int) -> None:
    """Enter the learning rates of a step; where one is a tensor its value is replaced, without waiting for the device."""
    factor = schedule(config, step)
    for name, optimizer in optimizers.items():
        rate = factor * (config.muon_lr if name == "muon" else config.learning_rate)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["lr_factor"])
            else:
                group["lr"] = rate * group["lr_factor"]


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
