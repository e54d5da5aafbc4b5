"""Who runs next. Policy only: lists and heaps, no tensors, no clock but the one it is told.

There is no prefill phase and no decode phase. Each step prefills some tokens, within a budget so that decoding rows never wait for
long, and then decodes several tokens for the sequences whose turn it is. New sequences get the lowest free row, first come first
served within a key and fairly between keys; a sequence whose window has moved goes to the end of the line of those that prefill.

Turns: if all rows decoded in lockstep, each step would read every row's keys and values from memory. So only as many decode together
as the processor's cache holds, several tokens each, and then the next ones: those that waited longest. Sequences without a first token
come before all others, at every second turn at most, so that a crowd of them holds nobody up for longer than one short turn.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field

from service.worker.fair_queue import FairQueue
from service.worker.prefixes import Prefixes
from service.worker.runners.interface import DecodeSlot, PrefillChunk, PrefixCopy, SampledTokens
from service.worker.sequence import Sequence

DECODE_S = 0.010
"""Longest multi-step decode: new sequences and cancellations wait until it ends."""
MAX_DECODE_STEPS = 64
PREFILL_S = 0.025
"""Longest prefill of one step: the decoding rows wait until it ends."""
MAX_PREFILL_TOKENS = 256


@dataclass(slots=True)
class Batch:
    """One step: ``copies`` in their order, ``chunks`` to prefill, then a multi-step decode. ``slots[i]`` belongs to ``sequences[i]``."""

    admitted: list[Sequence] = field(default_factory=list)
    copies: list[PrefixCopy] = field(default_factory=list)
    chunks: list[PrefillChunk] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    slots: list[DecodeSlot] = field(default_factory=list)

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def num_decode_steps(self) -> int:
        """Steps of the longest slot."""
        return max((slot.num_steps for slot in self.slots), default=0)


class Scheduler:
    """Holds every sequence of the engine: ``add``, ``cancel``, ``schedule``, ``update``. Checks its books when it is empty."""

    def __init__(self, rows: int, turn_rows: int, *, shares_prefixes: bool = False) -> None:
        self.num_rows = rows
        self.turn_rows = turn_rows
        self.num_decodes = 0
        self.newcomers_had_turn = False
        self.free_rows = list(range(rows))
        self.prefixes = Prefixes(rows, enabled=shares_prefixes)
        self.waiting = FairQueue()
        self.prefilling: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # id → sequence with a row
        self.sequences: dict[int, Sequence] = {}  # id → every sequence
        self.step_s: dict[int, float] = {}  # of one decode step, measured, by how many rows there are (as a power of 2)
        self.prefill_token_s = 0.001  # of one token, measured; first a careful guess

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.sequences)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.sequences[sequence.id] = sequence
        self.waiting.push(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence, wherever it is. An unknown id is that of a sequence that has just ended."""
        if sequence := self.sequences.get(sequence_id):
            self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """The one way out: row and every entry are given back."""
        del self.sequences[sequence.id]
        if sequence.row < 0:
            self.waiting.remove(sequence)
        else:
            self.take_row(sequence)

    def take_row(self, sequence: Sequence) -> None:
        """Its row is free again."""
        del self.running[sequence.id]
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
        self.prefixes.leave_row(sequence)
        heapq.heappush(self.free_rows, sequence.row)
        sequence.row = -1

    def schedule(self) -> Batch:
        """Admit, prefill within the budget, and let those decode whose turn it is."""
        batch = Batch()
        self.take_turns(batch)
        while self.free_rows and self.waiting:
            batch.admitted.append(self.admit(self.waiting.pop()))
        batch.copies = self.prefixes.schedule(self.prefilling, self.running.values())
        self.schedule_prefill(batch)
        batch.sequences = self.next_turn()
        if batch.sequences:
            num_steps = self.decode_steps(batch.sequences)
            batch.slots = [s.decode_slot(num_steps) for s in batch.sequences]
        return batch

    def take_turns(self, batch: Batch) -> None:
        """A key that waits and has no row gets one from the key with most of them.

        The sequence that is cheapest to rebuild goes back to its place in the queue: a cache is a function of its tokens, so that
        costs time and changes no byte. Who has one row keeps it, so nobody is sent to and fro.
        """
        if self.free_rows or not self.waiting:
            return
        rows = Counter(sequence.key for sequence in self.running.values())
        for key in [key for key in self.waiting.turns if key not in rows]:
            richest, most = rows.most_common(1)[0]
            if most <= 1:
                return
            rows[richest] -= 1
            sequence = min((s for s in self.running.values() if s.key == richest), key=lambda s: len(s.tokens))
            self.take_row(sequence)
            sequence.num_cached = sequence.num_decodes = 0
            self.waiting.push(sequence)
            batch.admitted.append(self.admit(self.waiting.pop(key)))

    def admit(self, sequence: Sequence) -> Sequence:
        """Give the lowest free row to a sequence that has left the queue."""
        sequence.row = heapq.heappop(self.free_rows)
        self.running[sequence.id] = sequence
        self.prefixes.enter_row(sequence)
        if not sequence.is_ready:
            self.prefilling.append(sequence)
        return sequence

    def schedule_prefill(self, batch: Batch) -> None:
        """Chunks for the first sequences in line, as far as the budget goes. Those that will copy wait in line."""
        budget = max(1, min(MAX_PREFILL_TOKENS, int(PREFILL_S / self.prefill_token_s)))
        for sequence in self.prefilling:
            if budget > 0 and not sequence.is_ready and not self.prefixes.must_wait(sequence):
                chunk = sequence.next_chunk(budget)
                batch.chunks.append(chunk)
                sequence.num_cached += len(chunk.tokens)
                budget -= len(chunk.tokens)
        self.prefilling = deque(s for s in self.prefilling if not s.is_ready)

    def next_turn(self) -> list[Sequence]:
        """At most ``turn_rows`` sequences that are ready: newcomers at every second turn at most, otherwise those that waited longest."""
        ready = [s for s in self.running.values() if s.is_ready]
        newcomers, others = [s for s in ready if s.num_decodes == 0], [s for s in ready if s.num_decodes > 0]
        self.newcomers_had_turn = bool(newcomers) and not (others and self.newcomers_had_turn)
        chosen = (newcomers if self.newcomers_had_turn else sorted(others, key=lambda s: s.last_decode))[: self.turn_rows]
        for sequence in chosen:
            self.num_decodes += 1
            sequence.last_decode = self.num_decodes
        return chosen

    def decode_steps(self, sequences: list[Sequence]) -> int:
        """Steps of this decode: 1 for a new sequence's first token, then 2, 4, 8, …, as many as fit into DECODE_S."""
        youngest = min(s.num_decodes for s in sequences)
        step_s = self.step_s.get(len(sequences).bit_length(), 0.001)
        return max(1, min(MAX_DECODE_STEPS, 1 << min(youngest, 6), int(DECODE_S / max(step_s, 1e-6))))

    def update(self, batch: Batch, sampled: list[SampledTokens], prefill_s: float, decode_s: float) -> list[Sequence]:
        """Enter what a step sampled, and how long its two halves took; returns the sequences that it finished."""
        self.measure(batch, prefill_s, decode_s)
        finished = []
        for sequence, tokens in zip(batch.sequences, sampled, strict=True):
            sequence.append(tokens)
            if sequence.is_finished:
                finished.append(sequence)
            elif not sequence.is_ready:
                self.prefilling.append(sequence)
        for sequence in finished:
            self.end(sequence)
        if not self.sequences:
            self.check_books()
        return finished

    def measure(self, batch: Batch, prefill_s: float, decode_s: float) -> None:
        """Update what a prefilled token and a decode step are expected to cost."""
        if batch.chunks:
            # Slower is believed at once, faster by halves: a step that takes too long looks like a hang.
            self.prefill_token_s = max(prefill_s / batch.num_prefill_tokens, self.prefill_token_s / 2, 1e-9)
        if batch.slots:
            rows, step_s = len(batch.slots).bit_length(), decode_s / batch.num_decode_steps
            self.step_s[rows] = step_s if rows not in self.step_s else 0.8 * self.step_s[rows] + 0.2 * step_s

    def check_books(self) -> None:
        """Without sequences every row is free exactly once, and no list holds anything."""
        assert sorted(self.free_rows) == list(range(self.num_rows)), f"rows lost: {sorted(self.free_rows)}"
        assert not self.running and not self.waiting and not self.prefilling, "a sequence outlived its end"
