"""The text that follows a prompt: the oracle of every engine, in a screenful."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from model.exact.arithmetic import Floats
from model.exact.network import Cache, ExactModel
from model.params import SamplingParams
from model.sampling import sample
from model.window import window_start


def logits_after(model: ExactModel, prompt: Sequence[int], stride: int, tokens: list[int]) -> Iterator[Floats]:
    """(V,) logits after ``prompt`` and whatever the caller appends to ``tokens`` between one yield and the next."""
    block_size, start, cache = model.config.block_size, -1, Cache(model.config)
    while True:
        text = [*prompt, *tokens]
        window = window_start(len(text), block_size, stride)
        if window != start:  # positions are absolute: when the window moves, everything in it is encoded afresh
            start, cache = window, Cache(model.config)
        new = text[start + cache.length :]
        yield model.logits(model.hidden(np.array([new]), cache)[0, -1])


def generate(model: ExactModel, prompt: Sequence[int], params: SamplingParams, *, start: int = 0) -> Iterator[int]:
    """Token ids after ``prompt``, one at a time, ``params.max_new_tokens`` of them.

    An empty prompt starts from the token ``start``, which is no part of the prompt otherwise. ``params.stride`` of None slides the window
    exactly.
    """
    tokens: list[int] = []
    for logits in logits_after(model, prompt or [start], params.stride or 1, tokens):
        tokens.append(sample(logits, params, prompt, tokens))
        yield tokens[-1]
        if len(tokens) >= params.max_new_tokens:
            return
