"""Rows whose windows begin alike: what one has computed, the others copy. A row's cache is a function of its tokens, so no byte moves.

    row 0   S S S S S S a b c      S: tokens that many prompts begin with
    row 1   S S S S S S x          admitted later: copies six tokens, prefills one
    row 2   S S S y                what a sequence has left in a row is good until somebody else has overwritten it

Sequences that are admitted together wait for the first of them, their leader, and then copy. No tensors here, and no memory but a
list of tokens for each row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from service.worker.runners.interface import PrefixCopy
from service.worker.sequence import Sequence

MIN_SHARED = 16
"""Fewer tokens are not worth a copy, nor the wait for one."""


def num_shared(a: list[int], b: list[int]) -> int:
    """How many tokens two lists begin with alike.

    >>> num_shared([1, 2, 3], [1, 2, 4, 5])
    2
    """
    same, other = 0, min(len(a), len(b)) + 1  # a[:same] == b[:same]; they differ before `other`, or end there
    while other - same > 1:
        middle = (same + other) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            other = middle
    return same


def begins_like(sequence: Sequence, window: list[int]) -> bool:
    """Whether it is worth to compare them any further."""
    return sequence.tokens[sequence.start : sequence.start + MIN_SHARED] == window[:MIN_SHARED]


@dataclass(frozen=True, slots=True)
class Leader:
    """A sequence that is prefilling what another one is going to copy."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def has_arrived(self) -> bool:
        """Whether there is nothing to wait for: all is cached, or never will be, since its window has moved."""
        return self.sequence.start != self.start or self.sequence.num_cached >= self.num_tokens


class Prefixes:
    """What rows hold, and who waits for whom. Does nothing if it is not ``enabled``."""

    def __init__(self, rows: int, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.left: list[list[int]] = [[] for _ in range(rows)]  # row → what its last sequence has left in the cache
        self.searched: dict[int, int] = {}  # id of a sequence → the window's start for which rows were looked through
        self.leaders: dict[int, Leader] = {}  # id of a sequence that waits → whom it waits for

    def enter_row(self, sequence: Sequence) -> None:
        """A sequence has got a row: what it begins with may be there already."""
        if self.enabled:
            sequence.num_cached = num_shared(self.left[sequence.row], sequence.window)
            self.left[sequence.row] = []

    def leave_row(self, sequence: Sequence) -> None:
        """A sequence is about to give its row back. Who waits for it looks for another one."""
        self.left[sequence.row] = sequence.cached_tokens
        self.searched.pop(sequence.id, None)
        self.leaders.pop(sequence.id, None)
        for follower in [id for id, leader in self.leaders.items() if leader.sequence is sequence]:
            del self.leaders[follower], self.searched[follower]

    def must_wait(self, sequence: Sequence) -> bool:
        """Whether it is going to copy what another one is prefilling."""
        return sequence.id in self.leaders

    def schedule(self, line: Collection[Sequence], running: Collection[Sequence]) -> list[PrefixCopy]:
        """What the sequences in line to prefill can copy now. Who will be able to copy from somebody ahead in line waits."""
        copies = []
        for place, sequence in enumerate(line if self.enabled else ()):
            leader = self.leaders.get(sequence.id)
            if self.searched.get(sequence.id) != sequence.start or (leader is not None and leader.has_arrived):
                self.searched[sequence.id] = sequence.start
                self.leaders.pop(sequence.id, None)
                copies += self.copy(sequence, running)
                self.follow(sequence, list(line)[:place])
        return copies

    def copy(self, sequence: Sequence, running: Iterable[Sequence]) -> list[PrefixCopy]:
        """The copy of the longest beginning that any row has, if that is longer by `MIN_SHARED` than what the sequence has."""
        window = sequence.window
        rows = [(other.row, other.cached_tokens) for other in running if other is not sequence and begins_like(other, window)]
        rows += [(row, tokens) for row, tokens in enumerate(self.left) if tokens[:MIN_SHARED] == window[:MIN_SHARED]]
        found = [(num_shared(tokens, window), row) for row, tokens in rows]
        length, source = max(found, default=(0, -1))
        if length < sequence.num_cached + MIN_SHARED:
            return []
        sequence.num_cached = length
        return [PrefixCopy(source, sequence.row, length)]

    def follow(self, sequence: Sequence, ahead: Iterable[Sequence]) -> None:
        """Wait for whoever ahead in line is going to have the longest beginning in common with it."""
        window, best = sequence.window, sequence.num_cached + MIN_SHARED
        for other in ahead:
            if begins_like(other, window) and (length := num_shared(other.window, window)) >= best:
                self.leaders[sequence.id] = Leader(other, other.start, length)
                best = length + 1
