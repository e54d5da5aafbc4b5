"""torch.compile as an option that never breaks a run."""

from __future__ import annotations

import sys

import torch

from training.step import TrainStep


def compile_step(step: TrainStep) -> None:
    """Compile the step's forward pass and try it, backward too; leave the step as it was when that fails."""
    plain = step.forward
    try:
        step.forward = torch.compile(plain)
        step.loss_and_gradient()  # its gradient is dropped by the first real step
    except Exception as error:  # whatever a compiler can throw
        step.forward = plain
        reason = (str(error).splitlines() or [""])[0][:200]
        print(f"--compile: {type(error).__name__}: {reason}; going on without", file=sys.stderr)
