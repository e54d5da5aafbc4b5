"""The sampler of the textbook: encode the whole window for every token. Slow and obviously right.

Training uses it for samples; every fast path of the engine is tested against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from model.gpt import GPT
from model.params import SamplingParams
from model.sampling import sample
from model.window import window_start


@torch.no_grad()
def next_logits(model: GPT, tokens: Sequence[int], stride: int) -> torch.Tensor:
    """(V,) logits of the token after ``tokens`` (at least one), seen through the window of ``stride``."""
    device = model.lm_head.weight.device
    window = list(tokens[window_start(len(tokens), model.config.block_size, stride) :])
    hidden = model.hidden(torch.tensor([window], device=device))
    out: torch.Tensor = model.lm_head(hidden[0, -1])
    return out


def generate(model: GPT, prompt: Sequence[int], params: SamplingParams, *, start: int = 0) -> Iterator[int]:
    """Token ids after ``prompt``, one at a time, ``params.max_new_tokens`` of them.

    An empty prompt starts from the token ``start``, which is no part of the prompt otherwise. ``params.stride`` of None slides
    exactly. The model is put into evaluation mode while a token is computed.
    """
    stride = params.stride or 1
    tokens = list(prompt) or [start]
    generated: list[int] = []
    for _ in range(params.max_new_tokens):
        training = model.training
        model.eval()
        logits = next_logits(model, tokens, stride)
        model.train(training)
        generated.append(sample(logits.float().cpu().numpy(), params, prompt, generated))
        tokens.append(generated[-1])
        yield tokens[-1]
