"""How emulated kernels are held against the reference: every bit of every logit, every token, every log-probability."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.exact.network import Cache
from model.params import SamplingParams
from model.sampling import log_probabilities, rank_tokens, sample
from tests.gpu.checkpoints import Model
from tests.gpu.emulated import Emulated

Floats = NDArray[np.float32]
TEXTS = 3


def bits(x: Floats) -> NDArray[np.int32]:
    """Bit patterns: 0 and -0 differ, a NaN equals itself."""
    return np.ascontiguousarray(x).view(np.int32)


def random_texts(model: Model, length: int, seed: int = 1) -> NDArray[np.int64]:
    """(TEXTS, length) token ids."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (TEXTS, length))


def reference_logits(model: Model, texts: NDArray[np.int64]) -> Floats:
    """(TEXTS, length) token ids → (TEXTS, length, V)."""
    reference = model.reference()
    return reference.logits(reference.hidden(texts, Cache(model.config, len(texts))))


def differing_in_decode(model: Model, target: str, size: int, length: int) -> int:
    """Differing logits when `size` rows decode, out of order and out of step, a third of them idle in the first of two passes."""
    g = np.random.default_rng(size)
    texts = random_texts(model, length)
    wanted = reference_logits(model, texts)
    emulated = Emulated(model, size + 1, size, target=target, seed=size)
    rows, lag = g.permutation(size + 1)[:size], np.arange(size) % 2
    differing = 0
    for step in range(length + 1):
        position = step - lag
        in_step = (position >= 0) & (position < length)
        late = g.random(size) < 0.3
        for turn in (in_step & ~late, in_step & late):
            if not turn.any():
                continue
            tokens = [int(texts[i % TEXTS][position[i]]) if turn[i] else 0 for i in range(size)]
            logits = emulated.run(np.where(turn, rows, -1).tolist(), tokens, np.where(turn, position, 0).tolist())
            for i in np.flatnonzero(turn):
                differing += int((bits(logits[i]) != bits(wanted[i % TEXTS][position[i]])).sum())
    return differing


def differing_in_prefill(model: Model, target: str, length: int) -> int:
    """The same when one row's tokens come in pieces of several sizes, a token of another row beside them."""
    texts = random_texts(model, length)
    wanted = reference_logits(model, texts)
    emulated = Emulated(model, 3, length + 1, target=target, seed=length)
    differing = first = 0
    for last in sorted({1, 3, min(length, 13), length}):
        n = last - first
        logits = emulated.run([1] * n + [2], [*texts[1][first:last], texts[2][0]], [*range(first, last), 0], distinct=False)
        differing += int((bits(logits[:n]) != bits(wanted[1][first:last])).sum())
        differing += int((bits(logits[n]) != bits(wanted[2][0])).sum())
        first = last
    return differing


def random_params(g: np.random.Generator, size: int, **fixed: Any) -> SamplingParams:
    """Every parameter, neutral half of the time."""

    def some(neutral: float, *others: float) -> float:
        return float(neutral if g.random() < 0.5 else g.choice(others))

    values: dict[str, Any] = {
        "seed": int(g.integers(0, 2**53)),
        "temperature": some(1, 0, 0.05, 0.3, 0.8, 1.7, 5),
        "top_k": int(some(0, 1, 2, 3, 20, size, size + 5)),
        "top_p": some(1, 0.95, 0.5, 0.05, 1e-9),
        "min_p": some(0, 0.02, 0.3, 1),
        "repetition_penalty": some(1, 1.3, 0.8),
        "frequency_penalty": some(0, 0.2, -0.4),
        "presence_penalty": some(0, 0.5, -1),
        "logit_bias": () if g.random() < 0.5 else tuple((int(t), float(g.choice([1.5, -100, 100, 0.25]))) for t in g.integers(0, size, 3)),
        "num_logprobs": None if g.random() < 0.5 else int(g.choice([0, 1, 3, min(size, 20)])),
    }
    return SamplingParams(**(values | fixed))


def check_draw(
    emulated: Emulated, item: int, step: int, logits: Floats, params: SamplingParams, prompt: list[int], generated: list[int]
) -> int:
    """The token that an item drew, held against the reference's, with its log-probabilities."""
    token = int(emulated.arrays["out"][item, step])
    assert token == sample(logits, params, prompt, generated), params
    if params.num_logprobs is not None:
        values, wanted = emulated.arrays["logprobs"][item, step], log_probabilities(logits)
        top = rank_tokens(logits, params.num_logprobs)
        expected = np.array([wanted[token], *(x for t in top for x in (t, wanted[t]))])
        assert (values[: len(expected)].view(np.int64) == expected.view(np.int64)).all(), params
    return token
