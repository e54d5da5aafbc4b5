"""What the engine steps: something that turns cached tokens into the next ones. Two exist, `native.runner` and `torch_runner`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from model.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one sequence to be encoded into its row: ``tokens[i]`` goes to position ``start + i``."""

    row: int
    start: int
    tokens: Sequence[int]
    replay: bool = False
    """Whether these tokens went through the decode path at first; where prefill rounds differently, they must do so again."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a row goes on: ``token`` is encoded at ``position`` by the next decode step, then at most ``steps`` tokens are drawn."""

    row: int
    token: int
    position: int
    steps: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one row drew in a burst. ``logprobs[i]``: (log-probability of tokens[i], ((id, log-probability), …)), if asked for."""

    tokens: list[int]
    logprobs: list[tuple[float, list[tuple[int, float]]]] | None


class Runner(Protocol):
    """Rows of cache and the arithmetic on them. What a row yields depends on that row's own history alone."""

    rows: int
    """Sequences that fit, all memory taken at construction."""
    chunk: int
    """Length of a prefill piece: the engine cuts every prompt at multiples of it."""
    device: str
    dtype: str
    kernels: str
    """Name and identity of the arithmetic, for the fingerprint."""
    memory_bytes: int
    """Cache memory taken."""

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Give a row to a request with this history."""
        ...

    def encode(self, pieces: Sequence[Piece]) -> None:
        """Fill the cache; every piece has at most ``chunk`` tokens."""
        ...

    def decode(self, cursors: Sequence[Cursor]) -> list[Drawn]:
        """A burst: for each row up to its ``steps`` tokens, each drawn and fed back."""
        ...

    def next_logits(self, row: int, tokens: Sequence[int]) -> list[float]:
        """Logits after ``tokens``, by way of ``encode`` and one decode step in ``row``; for the self-test."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...
