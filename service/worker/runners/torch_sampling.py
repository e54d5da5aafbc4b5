"""The sampler of `model.sampling` for many rows at once, on tensors: the same integers, and so the same tokens.

Shape letters: R rows (one sequence each), B rows of this step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from model.params import SamplingParams
from model.uniform import u53_tensor
from service.worker.runners import torch_arithmetic as ar


@dataclass(slots=True)
class SamplerState:
    """The parameters and the history of R rows."""

    seed: Tensor  # (R,) int64
    index: Tensor  # (R,) int64, number of tokens generated so far
    temperature: Tensor  # (R, 1) float64, and so on
    top_k: Tensor  # (R, 1) int64
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    bias: Tensor  # (R, V) float64
    in_prompt: Tensor  # (R, V) bool
    counts: Tensor  # (R, V) int32, of generated tokens

    @classmethod
    def zeros(cls, rows: int, vocab_size: int, device: torch.device) -> SamplerState:
        """R idle rows."""
        kinds = {"seed": torch.int64, "index": torch.int64, "top_k": torch.int64, "in_prompt": torch.bool, "counts": torch.int32}
        shapes = {
            "seed": (rows,),
            "index": (rows,),
            "bias": (rows, vocab_size),
            "in_prompt": (rows, vocab_size),
            "counts": (rows, vocab_size),
        }
        names = [field.name for field in fields(cls)]
        return cls(*(torch.zeros(shapes.get(n, (rows, 1)), dtype=kinds.get(n, torch.float64), device=device) for n in names))

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Make ``row`` the state of a request with this prompt after these generated tokens."""
        size = self.bias.shape[1]
        self.seed[row], self.index[row] = params.seed, len(generated)
        self.temperature[row], self.top_k[row] = params.temperature, min(params.top_k or size, size)
        self.top_p[row], self.min_p[row] = params.top_p, params.min_p
        self.repetition[row] = params.repetition_penalty
        self.frequency[row], self.presence[row] = params.frequency_penalty, params.presence_penalty
        bias = torch.zeros(size, dtype=torch.float64)
        for token, addend in params.logit_bias:
            bias[token] += addend
        self.bias[row] = bias.to(self.bias.device)
        history = [torch.bincount(torch.tensor(list(ids), dtype=torch.int64), minlength=size) for ids in (prompt, generated)]
        self.in_prompt[row] = (history[0] > 0).to(self.in_prompt.device)
        self.counts[row] = history[1].to(self.counts)

    def at(self, rows: Tensor) -> SamplerState:
        """A copy of some rows."""
        return SamplerState(*(getattr(self, field.name)[rows] for field in fields(self)))

    def advance(self, rows: Tensor, tokens: Tensor) -> None:
        """Enter the tokens (B,) that (B,) rows have just sampled."""
        self.counts[rows, tokens] += 1
        self.index[rows] += 1


def sample(logits: Tensor, state: SamplerState, *, any_filter: bool = True) -> Tensor:
    """(B, V) float32 logits → (B,) tokens. ``any_filter=False`` leaves out a sort that would change nothing."""
    x = ar.adjusted(logits, state.bias, state.repetition, state.frequency, state.presence, state.in_prompt, state.counts)
    greedy = state.temperature == 0
    weights = ar.weight(x, x.amax(-1, keepdim=True), torch.where(greedy, 1.0, state.temperature))
    if any_filter:
        weights = filtered(weights, state)
    cdf = weights.cumsum(-1)
    drawn = (cdf <= ar.target(u53_tensor(state.seed, state.index), cdf[:, -1])[:, None]).sum(-1)
    return torch.where(greedy[:, 0], x.argmax(-1), drawn)


def filtered(weights: Tensor, state: SamplerState) -> Tensor:
    """(B, V) weights with min-p, top-k and top-p applied in this order: what is cut off weighs 0."""
    ranked, order = weights.sort(dim=-1, descending=True, stable=True)
    ranked = torch.where(ranked >= ar.least(state.min_p), ranked, 0)
    ranked = torch.where(torch.arange(weights.shape[-1], device=weights.device) < state.top_k, ranked, 0)
    before = ranked.cumsum(-1) - ranked
    kept = torch.where(before < ar.nucleus(state.top_p, ranked.sum(-1, keepdim=True)), ranked, 0)
    return torch.zeros_like(weights).scatter_(1, order, kept)


def log_probabilities(logits: Tensor) -> Tensor:
    """(B, V) logits → natural logarithms of the model's own distribution, before any parameter, float64."""
    x = logits.double()
    most = x.amax(-1, keepdim=True)
    total = ar.weight(x, most, ar.like(1.0, x)).sum(-1, keepdim=True)
    return (x - most) - ar.log_total(total)
