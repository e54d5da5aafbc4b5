"""Muon: momentum whose update is made orthogonal, for the matrices of the blocks (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

The arithmetic is that of `torch.optim.Muon`, with three differences: matrices of one shape go through the iteration as one batch
(20 matrices × 30 small products would dominate a step on a GPU), the learning rate may be a tensor (so that a captured CUDA graph
follows the schedule), and the iteration runs in float32 where bfloat16 is emulated (25 times slower on such a CPU).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton–Schulz iteration: steep at zero, so that five rounds take every singular value to about 0.7 to 1.2."""
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """``parts`` of a group says into how many equal blocks of rows its matrices fall: 3 for stacked queries, keys and values."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float | Tensor, weight_decay: float, momentum: float = 0.95, dtype: torch.dtype
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the gradients, which every parameter must have."""
        assert closure is None
        for group in self.param_groups:
            parameters: list[Tensor] = group["params"]
            gradients = [p.grad for p in parameters if p.grad is not None]
            for p in parameters:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            self.apply(parameters, updates, group["parts"], group["lr"])

    def apply(self, parameters: Sequence[Tensor], updates: Sequence[Tensor], parts: int, lr: float | Tensor) -> None:
        """Subtract the orthogonalised updates; a tall matrix moves by √(rows / columns) more."""
        batches: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            for pair in zip(parameter.chunk(parts), update.chunk(parts), strict=True):
                batches[pair[0].shape[0], pair[0].shape[1]].append(pair)
        for (rows, columns), pairs in batches.items():
            tall = rows > columns
            stack = torch.stack([update.T if tall else update for _, update in pairs])
            moves = orthogonalize(stack.to(self.dtype)).float() * (lr * math.sqrt(max(1.0, rows / columns)))
            torch._foreach_sub_([weight.T if tall else weight for weight, _ in pairs], list(moves.unbind()))


def orthogonalize(x: Tensor) -> Tensor:
    """(M, R, C) matrices, R ≤ C → their nearest semi-orthogonal ones, roughly: U·S·Vᵀ becomes U·S'·Vᵀ with S' near 1."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # every singular value at most 1
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
