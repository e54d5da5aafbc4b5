"""From logits to a token, as a pure function of (logits, parameters, earlier tokens, seed, index), in exact arithmetic.

Logits become whole weights, the largest 2^40; every sum and every comparison after that is one of integers. The random number is a hash
of seed and index, and the token is the inverse CDF of the weights in token order, so that a last-bit change of a logit moves a token only
at a true tie. The one definition of every filter and penalty; engines say the same in C and in tensors. No torch here.

Shape letter: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.exact.arithmetic import Doubles, Floats, Ints, exp64, log64, rint
from model.params import SamplingParams
from model.uniform import u53

Real = float | Doubles
Flags = NDArray[np.bool_]

ONE = 2**40
"""The weight of the most probable token."""


def sample(logits: Floats, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> int:
    """(V,) logits → the token after ``prompt`` and ``generated``."""
    x = adjusted_logits(logits, params, prompt, generated)
    if params.is_greedy:
        return int(x.argmax())
    weights = filtered(weight(x, x.max(), params.temperature), params)
    return draw(weights, u53(params.seed, len(generated)))


def adjusted_logits(logits: Floats, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> Doubles:
    """(V,) logits after bias (addends for one token are summed) and repetition, frequency and presence penalties."""
    size = len(logits)
    bias = np.zeros(size)
    for token, addend in params.logit_bias:
        bias[token] += addend
    counts = np.bincount(np.asarray(generated, np.int64), minlength=size)
    in_prompt = np.bincount(np.asarray(prompt, np.int64), minlength=size) > 0
    return adjusted(logits, bias, params.repetition_penalty, params.frequency_penalty, params.presence_penalty, in_prompt, counts)


def filtered(weights: Ints, params: SamplingParams) -> Ints:
    """(V,) weights with min-p, top-k and top-p applied in this order: what is cut off weighs 0. A tie goes to the lower id.

    With probabilities 0.5, 0.3, 0.2 and top_p = 0.6 the first two stay: 0.5 does not reach 0.6, 0.8 does.
    """
    size = len(weights)
    order = np.lexsort((np.arange(size), -weights))  # the heaviest first
    ranked = weights[order]
    ranked = np.where(ranked >= least(params.min_p), ranked, 0)
    ranked[params.top_k or size :] = 0
    before = ranked.cumsum() - ranked
    ranked = np.where(before < nucleus(params.top_p, int(ranked.sum())), ranked, 0)
    kept = np.zeros_like(weights)
    kept[order] = ranked
    return kept


def draw(weights: Ints, fraction: int) -> int:
    """The first token whose running sum of weights exceeds ``fraction`` / 2^53 of their total."""
    return int((weights.cumsum() <= target(fraction, int(weights.sum()))).sum())


def log_probabilities(logits: Floats) -> Doubles:
    """Logits (…, V) → natural logarithms of the model's own distribution, before any parameter."""
    x = logits.astype(np.float64)
    most = x.max(-1, keepdims=True)
    return logprob(x, most, log_total(weight(x, most, 1.0).sum(-1, keepdims=True)))


def rank_tokens(logits: NDArray[np.floating], count: int) -> list[int]:
    """Ids of the ``count`` most probable tokens, the lower id first on a tie."""
    order: list[int] = np.lexsort((np.arange(len(logits)), -logits))[:count].tolist()
    return order


# Functions of one element, as `arithmetic.h` has them under the same names.


def adjusted(logit: Floats, bias: Real, repetition: Real, frequency: Real, presence: Real, in_prompt: Flags, count: Ints) -> Doubles:
    """A logit after bias and penalties; ``count`` is how often the token was generated."""
    x = logit.astype(np.float64) + bias
    x = np.where(in_prompt | (count > 0), np.where(x > 0, x / repetition, x * repetition), x)
    x = x - frequency * count
    return x - np.where(count > 0, presence, 0.0)


def weight(x: Doubles, most: Real, temperature: Real) -> Ints:
    """Probability in units of 2^-40 of the largest, whose adjusted logit is ``most``."""
    return rint(exp64((x - most) / temperature) * ONE)


def least(min_p: float) -> int:
    """The least weight that min-p keeps."""
    return int(np.rint(min_p * ONE))


def target(fraction: int, total: int) -> int:
    """``fraction`` / 2^53 of ``total``, rounded down."""
    return fraction * total >> 53


def nucleus(top_p: float, total: int) -> int:
    """Top-p keeps a token if those before it weigh less than this."""
    return max(1, target(int(np.rint(top_p * 2.0**53)), total))


def log_total(total: Ints) -> Doubles:
    """The logarithm of a sum of weights at temperature 1, in units of the largest."""
    return log64(total.astype(np.float64) / ONE)


def logprob(x: Doubles, most: Real, log_total: Doubles) -> Doubles:
    """Log-probability of a token with the logit x; ``most`` is the largest logit."""
    return (x - most) - log_total
