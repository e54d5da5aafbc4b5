"""torch.compile as an option that never breaks a run."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from training.step import Forward


def compiled(forward: Forward, example: Tensor) -> Forward:
    """``forward`` compiled and tried on ``example`` ((B, T) token ids), backward too; as it was when that fails."""
    try:
        fast: Forward = torch.compile(forward)
        torch.autograd.backward(fast(example).float().mean())
    except Exception as error:  # whatever a compiler can throw
        reason = (str(error).splitlines() or [""])[0][:200]
        print(f"--compile: {type(error).__name__}: {reason}; going on without", file=sys.stderr)
        return forward
    return fast
