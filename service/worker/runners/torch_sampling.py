"""From logits to a token, as a pure function of (logits, parameters, earlier tokens, seed, index).

There is no generator object and no shared state: random number i of seed s is a hash of (s, i), and the token is the inverse CDF
of the probabilities in token order, so that a last-bit change of a logit moves a token only at a true tie.

Shape letters: R rows (one sequence each), V vocabulary. Probabilities are float64 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.params import SamplingParams
from model.uniform import uniform_tensor


@dataclass(slots=True)
class SamplerState:
    """The parameters and the history of R rows as tensors, so that a whole batch is sampled on its device without a sync."""

    seed: Tensor  # (R,) int64
    index: Tensor  # (R,) int64, number of tokens generated so far
    temperature: Tensor  # (R,) float64
    top_k: Tensor  # (R,) int64
    top_p: Tensor  # (R,) float64
    min_p: Tensor  # (R,) float64
    repetition: Tensor  # (R,) float64
    frequency: Tensor  # (R,) float64
    presence: Tensor  # (R,) float64
    bias: Tensor  # (R, V) float64
    in_prompt: Tensor  # (R, V) bool
    counts: Tensor  # (R, V) int64, of generated tokens

    @classmethod
    def zeros(cls, rows: int, vocab_size: int, device: torch.device | str = "cpu") -> SamplerState:
        """R idle rows with neutral parameters."""

        def full(value: float, dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.full((rows, *shape), value, dtype=dtype, device=device)

        real, whole = torch.float64, torch.int64
        return cls(
            seed=full(0, whole),
            index=full(0, whole),
            temperature=full(1, real),
            top_k=full(0, whole),
            top_p=full(1, real),
            min_p=full(0, real),
            repetition=full(1, real),
            frequency=full(0, real),
            presence=full(0, real),
            bias=full(0, real, vocab_size),
            in_prompt=full(False, torch.bool, vocab_size),
            counts=full(0, whole, vocab_size),
        )

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Make ``row`` the state of a request with this prompt after these generated tokens."""
        self.seed[row], self.index[row] = params.seed, len(generated)
        self.temperature[row], self.top_k[row] = params.temperature, params.top_k
        self.top_p[row], self.min_p[row] = params.top_p, params.min_p
        self.repetition[row] = params.repetition_penalty
        self.frequency[row], self.presence[row] = params.frequency_penalty, params.presence_penalty
        device, vocab_size = self.bias.device, self.bias.shape[1]
        bias = torch.zeros(vocab_size, dtype=torch.float64)
        for token, addend in params.logit_bias:
            bias[token] += addend
        self.bias[row] = bias.to(device)
        seen = torch.bincount(torch.tensor(list(prompt), dtype=torch.int64), minlength=vocab_size) > 0
        self.in_prompt[row] = seen.to(device)
        self.counts[row] = torch.bincount(torch.tensor(list(generated), dtype=torch.int64), minlength=vocab_size).to(device)

    def rows(self, first: int, end: int) -> SamplerState:
        """A view of rows ``first … end − 1``."""
        return SamplerState(*(getattr(self, name)[first:end] for name in self.__slots__))

    def advance(self, tokens: Tensor, active: Tensor) -> None:
        """Enter the tokens (R,) just drawn into the history of the active rows."""
        self.counts.scatter_add_(1, tokens[:, None], active[:, None].to(self.counts.dtype))
        self.index.add_(active)


def adjusted_logits(logits: Tensor, state: SamplerState) -> Tensor:
    """(R, V) logits → float64 logits after bias, penalties and temperature (a temperature of 0 leaves them unscaled)."""
    x = logits.double() + state.bias
    seen = state.in_prompt | (state.counts > 0)
    repetition = state.repetition[:, None]
    x = torch.where(seen, torch.where(x > 0, x / repetition, x * repetition), x)
    x = x - state.frequency[:, None] * state.counts - state.presence[:, None] * (state.counts > 0)
    return x / torch.where(state.temperature == 0, 1.0, state.temperature)[:, None]


def filtered(probs: Tensor, state: SamplerState) -> Tensor:
    """(R, V) probabilities with min-p, top-k and top-p applied in this order, not renormalised.

    With probabilities 0.5, 0.3, 0.2 and top_p = 0.6 the first two stay: 0.5 does not reach 0.6, 0.8 does.
    """
    vocab_size = probs.shape[-1]
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab_size, device=probs.device)
    top_k = torch.where(state.top_k == 0, vocab_size, state.top_k)[:, None]
    keep = (ranked >= state.min_p[:, None] * ranked[:, :1]) & (rank < top_k)
    ranked = ranked * keep
    before = ranked.cumsum(-1) - ranked
    top_p = state.top_p[:, None]
    keep &= (before < top_p * ranked.sum(-1, keepdim=True)) | (top_p >= 1.0) | (rank == 0)
    return probs * torch.zeros_like(keep).scatter_(1, order, keep)


def sample(logits: Tensor, state: SamplerState, *, any_filter: bool = True) -> Tensor:
    """(R, V) logits → (R,) token ids. ``any_filter=False`` skips a sort that would change nothing."""
    x = adjusted_logits(logits, state)
    weights = (x - x.amax(-1, keepdim=True)).exp()  # unnormalised probabilities: the draw scales instead
    if any_filter:
        weights = filtered(weights, state)
    cdf = weights.cumsum(-1)
    target = uniform_tensor(state.seed, state.index)[:, None] * cdf[:, -1:]
    drawn = (cdf <= target).sum(-1)
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)  # rounding must not lead past the last candidate
    return torch.where(state.temperature == 0, x.argmax(-1), torch.minimum(drawn, last))


def log_probabilities(logits: Tensor) -> Tensor:
    """(R, V) logits → natural logarithms of the model's own distribution, before any parameter."""
    return logits.double().log_softmax(-1)
