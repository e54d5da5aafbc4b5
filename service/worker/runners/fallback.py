"""The definition itself as an engine: numpy, one row after the other. Slow, and always there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.checkpoint.files import Checkpoint
from model.exact.arithmetic import Floats
from model.exact.network import Cache, ExactModel
from model.exact.probes import reference_sum
from model.params import SamplingParams
from model.sampling import log_probabilities, rank_tokens, sample
from service.worker.runners.interface import DecodeSlot, PrefillChunk, PrefixCopy, SampledTokens, Speculation, TokenLogprobs


class ReferenceRunner:
    """A `Runner` on `model.exact`."""

    device = "cpu"
    kernels = "reference"
    speculation = Speculation()

    def __init__(self, checkpoint: Checkpoint, *, rows: int) -> None:
        self.model = ExactModel(checkpoint.config, checkpoint.tensors)
        self.rows = self.turn_rows = rows
        self.caches = [Cache(checkpoint.config) for _ in range(rows)]
        self.memory_bytes = sum(cache.values.nbytes + cache.scales.nbytes for cache in self.caches)
        self.params = [SamplingParams() for _ in range(rows)]
        self.prompts: list[list[int]] = [[] for _ in range(rows)]
        self.generated: list[list[int]] = [[] for _ in range(rows)]

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """See `Runner`."""
        self.params[row], self.prompts[row], self.generated[row] = params, list(prompt), list(generated)

    def copy_prefix(self, copy: PrefixCopy) -> None:
        """See `CopiesPrefixes`."""
        source, target, n = self.caches[copy.source], self.caches[copy.target], copy.num_tokens
        target.values[..., :n, :] = source.values[..., :n, :]
        target.scales[..., :n] = source.scales[..., :n]

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """See `Runner`."""
        self.logits(chunks)

    def logits(self, chunks: Sequence[PrefillChunk]) -> Floats:
        """See `Runner`."""
        parts = [self.forward(chunk.row, chunk.start, chunk.tokens) for chunk in chunks]
        return np.concatenate(parts) if parts else np.zeros((0, self.model.config.vocab_size), np.float32)

    def forward(self, row: int, start: int, tokens: Sequence[int]) -> Floats:
        """(tokens, V) logits; what the row has cached from ``start`` on is overwritten."""
        self.caches[row].length = start
        return self.model.logits(self.model.hidden(np.array([tokens]), self.caches[row])[0])

    def decode(self, slots: Sequence[DecodeSlot]) -> list[SampledTokens]:
        """See `Runner`."""
        return [self.decode_row(slot) for slot in slots]

    def decode_row(self, slot: DecodeSlot) -> SampledTokens:
        """One row's tokens and, if asked for, their log-probabilities."""
        params, prompt, generated = self.params[slot.row], self.prompts[slot.row], self.generated[slot.row]
        token, sampled = slot.token, []
        logprobs: list[TokenLogprobs] = []
        for position in range(slot.position, slot.position + slot.num_steps):
            logits = self.forward(slot.row, position, [token])[0]
            token = sample(logits, params, prompt, generated)
            generated.append(token)
            sampled.append(token)
            if params.num_logprobs is not None:
                values = log_probabilities(logits)
                best = [(i, float(values[i])) for i in rank_tokens(logits, params.num_logprobs)]
                logprobs.append((float(values[token]), best))
        return SampledTokens(sampled, logprobs if params.num_logprobs is not None else None)

    def probe(self, function: int) -> int:
        """See `Runner`."""
        return reference_sum(function)

    def close(self) -> None:
        """See `Runner`."""
        self.caches.clear()
