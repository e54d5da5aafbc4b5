"""A request as the sampler of kernel.cu sees it, and what a slot of a multi-step decode has drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.params import SamplingParams
from service.worker.cuda.launches import Plan
from service.worker.cuda.layout import ROW
from service.worker.runners.interface import DecodeSlot, SampledTokens, TokenLogprobs

Item = tuple[int, int, int]
"""Row, token, position."""


def row_state(plan: Plan, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> dict[str, NDArray[Any]]:
    """What a row holds of a request: `Row`, and for each token its bias, whether the prompt has it, how often it was generated."""
    size = plan.config.vocab_size
    bias = np.zeros(size)
    for token, addend in params.logit_bias:
        bias[token] += addend
    row = np.zeros((), ROW)
    row["seed"], row["index"] = params.seed, len(generated)
    row["temperature"], row["top_p"], row["min_p"] = params.temperature, params.top_p, params.min_p
    row["repetition"], row["frequency"] = params.repetition_penalty, params.frequency_penalty
    row["presence"], row["top_k"] = params.presence_penalty, min(params.top_k, 2**31 - 1)
    row["num_logprobs"] = -1 if params.num_logprobs is None else min(params.num_logprobs, plan.most_logprobs)
    return {
        "rows": row,
        "bias": bias,
        "in_prompt": (np.bincount(np.array(prompt, np.int64), minlength=size) > 0).astype(np.uint8),
        "counts": np.bincount(np.array(generated, np.int64), minlength=size).astype(np.int32),
    }


class Drawing:
    """One slot of a multi-step decode. ``num_logprobs``: how many of the most probable tokens are reported, -1 for no report at all."""

    def __init__(self, slot: DecodeSlot, num_logprobs: int) -> None:
        self.slot, self.num_logprobs = slot, num_logprobs
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.num_passes = 0
        self.is_guessed = bool(slot.guesses)

    @property
    def left(self) -> int:
        """Tokens that it still has to draw."""
        return self.slot.num_steps - len(self.tokens)

    def items(self, most: int) -> list[Item]:
        """The next input, and after it guesses of what it will draw, at most ``most`` of them."""
        done = len(self.tokens)
        guesses = self.slot.guesses[done : done + min(most, self.left - 1)]
        inputs = [self.tokens[-1] if done else self.slot.token, *guesses]
        return [(self.slot.row, token, self.slot.position + done + i) for i, token in enumerate(inputs)]

    def add(self, tokens: list[int], num_passes: int, values: NDArray[Any] | None) -> None:
        """What was drawn. ``values``: for each token its log-probability, then id, value, id, value, … of the most probable ones."""
        self.tokens += tokens
        self.num_passes += num_passes
        if values is not None and self.num_logprobs >= 0:
            self.logprobs += [(v[0], [(int(v[1 + 2 * i]), v[2 + 2 * i]) for i in range(self.num_logprobs)]) for v in values.tolist()]

    def sampled(self) -> SampledTokens:
        """All of it."""
        return SampledTokens(self.tokens, self.logprobs if self.num_logprobs >= 0 else None, self.num_passes)
