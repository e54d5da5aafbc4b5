"""What is said while a run goes on: a bar on a terminal, a plain line every ten seconds anywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from training.config import TrainingError

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_S = 10.0
FORECAST_STEPS = 5
"""Steps after which the pace is known well enough to speak of it."""
LONG_S = 15 * 60.0
QUICK = "for a first model in some minutes: --preset quick"


class Progress:
    """Steps, loss, tokens per second, the share of the machine's peak, and the time that is left."""

    def __init__(
        self, *, total: int, step: int, tokens_per_step: int, flops_per_step: float, peak_flops: float, quiet: bool = False
    ) -> None:
        self.total, self.step = total, step
        self.tokens_per_step, self.flops_per_step, self.peak_flops = tokens_per_step, flops_per_step, peak_flops
        self.quiet = quiet
        self.bar: tqdm[int] | None = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05)
        self.said = self.mark = time.monotonic()
        self.mark_step, self.steps_per_second = step, 0.0
        self.first, self.forecast_said = step, False

    def update(self, step: int, loss: float, best: float | None) -> None:
        """The run has done ``step`` steps; the last loss is known."""
        now = time.monotonic()
        if now > self.mark:
            rate = (step - self.mark_step) / (now - self.mark)
            self.steps_per_second = rate if self.steps_per_second == 0 else 0.7 * self.steps_per_second + 0.3 * rate
        self.mark, self.mark_step = now, step
        if not self.forecast_said and step >= self.first + FORECAST_STEPS:
            self.forecast_said = True
            self.say(self.forecast(step))
        words = f"loss {loss:.3f}" + (f"  best {best:.4f}" if best is not None else "") + f"  {self.speed()}"
        if self.bar is not None:
            self.bar.set_postfix_str(words, refresh=False)
            self.bar.update(step - self.step)
        elif now - self.said >= LINE_S:
            self.said = now
            self.say(f"step {step:>6} of {self.total}  {words}  {self.remaining(step)} left")
        self.step = step

    def resume_clock(self) -> None:
        """Leave what was just done (a validation, a save) out of the rate of the steps."""
        self.mark, self.mark_step = time.monotonic(), self.step

    def speed(self) -> str:
        """Tokens per second and model FLOPs utilisation."""
        utilisation = self.steps_per_second * self.flops_per_step / self.peak_flops if self.peak_flops else 0.0
        return f"{self.steps_per_second * self.tokens_per_step:,.0f} tokens/s  MFU {utilisation:.0%}"

    def remaining(self, step: int) -> str:
        """Time left at the present rate."""
        return duration((self.total - step) / self.steps_per_second) if self.steps_per_second else "?"

    def forecast(self, step: int) -> str:
        """How long all of it will take, and what takes less."""
        seconds = (self.total - step) / self.steps_per_second
        words = f"about {duration(seconds)} for {self.total - step:,} steps at this pace"
        return words if seconds < LONG_S else f"{words}; {QUICK}"

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.bar is not None:
            self.bar.write(text)
        elif not self.quiet:
            print(text, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> duration(42.4), duration(75), duration(3725)
    ('42 s', '1:15 min', '1:02 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"


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
