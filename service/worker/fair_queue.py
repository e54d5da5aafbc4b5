"""Who gets the next free row: first come, first served within a key; between keys, deficit round robin.

Each key in turn gains ``QUANTUM`` tokens of credit, and its first sequences leave as far as the credit covers them (Shreedhar and
Varghese, *Efficient Fair Queuing using Deficit Round Robin*, 1995). So a key that asks for 256 texts at once, or for the longest ones,
gets as many tokens as another that asks for little, and no more.
"""

from __future__ import annotations

import heapq
from collections import deque

from service.worker.sequence import Sequence

QUANTUM = 1024
MAX_COST = 64 * QUANTUM
"""A longer text counts as this much, so that no turn is looked for without end."""


class FairQueue:
    """Sequences without a row.

    >>> queue.push(sequence)
    >>> queue.pop()
    """

    def __init__(self) -> None:
        self.lines: dict[str, list[tuple[int, int, Sequence]]] = {}  # key → heap of (order, id, sequence)
        self.turns: deque[str] = deque()  # keys with a line; the first one is served
        self.credit: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    def push(self, sequence: Sequence) -> None:
        """Add a sequence. Its order decides its place: one that comes back keeps that of its first arrival."""
        if sequence.key not in self.lines:
            self.lines[sequence.key] = []
            self.turns.append(sequence.key)
            self.credit[sequence.key] = QUANTUM
        heapq.heappush(self.lines[sequence.key], (sequence.order, sequence.id, sequence))

    def pop(self, key: str | None = None) -> Sequence:
        """The next one, or the next one of a key. There must be one."""
        if key is None:
            key = self.next_key()
        _, _, sequence = heapq.heappop(self.lines[key])
        self.credit[key] -= cost_of(sequence)
        self.drop_if_empty(key)
        return sequence

    def next_key(self) -> str:
        """The first key in turn whose credit covers its first sequence."""
        while cost_of(self.lines[self.turns[0]][0][2]) > self.credit[self.turns[0]]:
            self.turns.rotate(-1)
            self.credit[self.turns[0]] += QUANTUM
        return self.turns[0]

    def remove(self, sequence: Sequence) -> None:
        """Take one out that will not run."""
        line = self.lines[sequence.key]
        line[:] = [entry for entry in line if entry[2] is not sequence]
        heapq.heapify(line)
        self.drop_if_empty(sequence.key)

    def drop_if_empty(self, key: str) -> None:
        """A key without a line has no turn and saves nothing for later."""
        if not self.lines[key]:
            del self.lines[key], self.credit[key]
            self.turns.remove(key)


def cost_of(sequence: Sequence) -> int:
    """Tokens that a sequence will take; nothing for one that has begun, since it has paid."""
    return 0 if sequence.num_generated > sequence.num_given else min(sequence.num_prompt + sequence.num_remaining, MAX_COST)
