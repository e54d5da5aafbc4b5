"""What the model writes while it learns."""

from __future__ import annotations

import torch
from torch import Tensor

from model.gpt import GPT
from model.kv_cache import CacheView, DecodeView, KVCache, PrefillView
from model.params import SamplingParams
from model.sampling import SamplerState, sample
from model.tokenizer.base import Tokenizer
from model.window import window_start


@torch.no_grad()
def sample_ids(model: GPT, params: SamplingParams, start: int) -> list[int]:
    """Tokens after ``start``, as `model.generate` draws them with a stride of half a context, but with a key-value cache.

    The same text up to the rounding of the logits, and some twenty times sooner: validations are not the place to wait.
    """
    block_size, device = model.config.block_size, model.lm_head.weight.device
    cache = KVCache(model.config, 1, device=device)
    state = SamplerState.zeros(1, model.config.vocab_size)
    state.set_row(0, params, [], [])
    active, tokens, begin = torch.ones(1, dtype=torch.int64), [start], -1
    training = model.training
    model.eval()
    for _ in range(params.max_new_tokens):
        window = window_start(len(tokens), block_size, params.stride or max(1, block_size // 2))
        view = decode_view(cache, len(tokens) - 1 - window) if window == begin else prefill_view(cache, len(tokens) - window)
        begin = window
        new = tokens[-view.positions.shape[1] :]
        logits: Tensor = model.lm_head(model.hidden(torch.tensor([new], device=device), view)[:, -1])
        token = sample(logits.cpu(), state, any_filter=params.has_filter)
        state.advance(token, active)
        tokens.append(int(token))
    model.train(training)
    return tokens[1:]


def prefill_view(cache: KVCache, length: int) -> CacheView:
    """The whole window afresh."""
    zero = torch.zeros(1, dtype=torch.int64, device=cache.k.device)
    return PrefillView(cache, zero, zero, length)


def decode_view(cache: KVCache, position: int) -> CacheView:
    """One more token."""
    return DecodeView(cache, 0, torch.tensor([position], device=cache.k.device))


def sample_text(model: GPT, tokenizer: Tokenizer, seed: int, length: int) -> str:
    """A plain multinomial sample that starts after a newline (or after token 0 where there is none)."""
    start = tokenizer.first("\n")
    return tokenizer.decode(sample_ids(model, SamplingParams(max_new_tokens=max(1, length), seed=seed), start)) if length else ""
