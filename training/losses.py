"""The losses of the steps since the last validation, kept on the device until someone asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from training.config import TrainingError


class LossLog:
    """``append`` waits for nothing; ``values`` waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.buffer = torch.zeros(256, device=device)
        self.count = 0

    def append(self, loss: Tensor) -> None:
        if self.count == len(self.buffer):
            self.buffer = torch.cat([self.buffer, self.buffer])
        self.buffer[self.count] = loss
        self.count += 1

    def values(self, mean: Callable[[Tensor], Tensor]) -> list[float]:
        """All losses, oldest first, averaged over processes by ``mean``."""
        losses: list[float] = mean(self.buffer[: self.count]).tolist()
        return losses

    def restore(self, values: Sequence[float]) -> None:
        """Hold exactly ``values``."""
        self.clear()
        for value in values:
            self.append(torch.tensor(value, device=self.buffer.device))

    def clear(self) -> None:
        """Forget them."""
        self.count = 0


def first_not_finite(values: Sequence[float]) -> int | None:
    """Index of the first NaN or infinity.

    >>> first_not_finite([1.0, float("nan"), 2.0]), first_not_finite([1.0])
    (1, None)
    """
    return next((i for i, value in enumerate(values) if not math.isfinite(value)), None)


def diverged(what: str, run: Path) -> NoReturn:
    """Raise the TrainingError that stops a run, leaving the last good checkpoint as it is."""
    kept = f"the last good checkpoint is {run / 'last'}" if (run / "last").exists() else "nothing has been saved yet"
    raise TrainingError(f"{what}: lower --learning-rate or use --dtype float32; {kept}")
