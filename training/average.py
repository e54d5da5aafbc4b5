"""A moving average of the weights, which is often a better model than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from model.gpt import GPT


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
