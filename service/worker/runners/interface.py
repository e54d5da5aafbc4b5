"""What the engine steps: something that turns cached tokens into the next ones, in the arithmetic of docs/arithmetic.md.

All runners give the same bits, logits included, however tokens are cut into calls and rows into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from model.params import SamplingParams

if TYPE_CHECKING:  # the API process reads this file too, and does without numpy
    import numpy as np
    from numpy.typing import NDArray


class RunnerUnavailable(RuntimeError):
    """This machine cannot run it; the message says why, and what would help."""


class RunnerLost(RuntimeError):
    """What it runs on has failed, and this process cannot use it any more; the message says what happened."""


TokenLogprobs = tuple[float, list[tuple[int, float]]]
"""The sampled token's log-probability, and (id, log-probability) of the most probable tokens, best first."""


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Known tokens of one sequence, to be written to the cache of its row: ``tokens[i]`` goes to position ``start + i``."""

    row: int
    start: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class PrefixCopy:
    """What one row has cached of its first ``num_tokens`` positions, another gets too: their tokens there are the same."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class DecodeSlot:
    """Where one row goes on decoding: ``token``, at ``position``, is the input of the first step; ``num_steps`` tokens are sampled."""

    row: int
    token: int
    position: int
    num_steps: int
    guesses: Sequence[int] = ()
    """What the tokens may turn out to be: no guess moves a byte, right ones save passes of the model."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What one row sampled in a multi-step decode. ``logprobs`` has one entry for each token, or is None if nobody asked for them."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    num_passes: int = 0
    """Passes of the model that it took: fewer than tokens where guesses were right. 0: as many."""


class Speculation(NamedTuple):
    """What guessing has brought since the start."""

    passes: int = 0
    """Of the model, in decoding."""
    proposed: int = 0
    """Guesses that a pass has judged."""
    accepted: int = 0
    """Those that were what the model drew."""


class Runner(Protocol):
    """``rows`` rows of key/value cache and the arithmetic on them. What a row yields depends on that row's own history alone."""

    rows: int
    """Sequences that fit. All memory is taken at construction."""
    turn_rows: int
    """Rows that decode fastest together: with more, keys and values no longer fit the processor's cache."""
    device: str
    """cpu or cuda."""
    kernels: str
    """What computes, for people: native-avx2, torch, …"""
    memory_bytes: int
    """Size of the cache."""

    @property
    def speculation(self) -> Speculation:
        """All zeros where nothing is guessed."""
        ...

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Give a row to a request with this history."""
        ...

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """Write the chunks' keys and values to the cache."""
        ...

    def decode(self, slots: Sequence[DecodeSlot]) -> list[SampledTokens]:
        """Multi-step decode: each slot samples up to ``num_steps`` tokens, each the next step's input. In the order of ``slots``."""
        ...

    def logits(self, chunks: Sequence[PrefillChunk]) -> NDArray[np.float32]:
        """Prefill, with the logits after every token: (tokens of all chunks, V). For the self-test."""
        ...

    def probe(self, function: int) -> int:
        """The sum of probe ``function`` over all its arguments (kernels/probe.h), as an unsigned 64-bit number; for the self-test."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


@runtime_checkable
class CopiesPrefixes(Protocol):
    """A runner whose rows can share what they have computed. A row's cache stays as it was written, also while nobody has the row."""

    def copy_prefix(self, copy: PrefixCopy) -> None:
        """Copy keys and values from row to row."""
        ...
