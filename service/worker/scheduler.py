"""Who runs next. Policy only: lists and heaps, no tensors, no clocks but the one it is told.

There is no prefill phase and no decode phase. Each step encodes some waiting tokens, within a budget so that those who decode are
never held up for long, and then lets everybody who is ready decode a burst. New sequences get the lowest free row, first come
first served; a sequence whose window moved goes to the end of the line of those who encode.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from service.worker.runners.interface import Cursor, Drawn, Piece
from service.worker.sequence import Sequence

BURST_SECONDS = 0.010  # how long a border may be away: joins and cancellations wait for it
MAX_BURST = 64
ENCODE_SECONDS = 0.025  # how long those who decode wait for those who are encoded
MAX_ENCODE = 256


@dataclass(slots=True)
class Plan:
    """One step: pieces to encode, then a burst."""

    pieces: list[Piece] = field(default_factory=list)
    batch: list[Sequence] = field(default_factory=list)
    cursors: list[Cursor] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Holds every sequence of the engine. ``add``, ``cancel``, ``schedule``, ``update``; the books are checked when idle."""

    def __init__(self, rows: int, chunk: int) -> None:
        self.num_rows, self.chunk = rows, chunk
        self.free = list(range(rows))
        self.waiting: list[tuple[int, Sequence]] = []  # heap by order of arrival
        self.encoding: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}
        self.known: dict[int, Sequence] = {}
        self.seconds_per_step = 0.001
        self.seconds_per_encoded = {False: 0.001, True: 0.001}  # a token's, by whether it is replayed; first a careful guess

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.known)

    def add(self, sequence: Sequence, order: int) -> None:
        """Queue a sequence. ``order`` decides its place: a rebuilt one keeps that of its first arrival."""
        self.known[sequence.id] = sequence
        heapq.heappush(self.waiting, (order, sequence))

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence, wherever it is; unknown ids are those that have just ended."""
        if sequence := self.known.get(sequence_id):
            self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """The one way out: row and every entry are given back."""
        del self.known[sequence.id]
        if sequence.row < 0:
            self.waiting = [entry for entry in self.waiting if entry[1] is not sequence]
            heapq.heapify(self.waiting)
            return
        del self.running[sequence.id]
        if sequence in self.encoding:
            self.encoding.remove(sequence)
        heapq.heappush(self.free, sequence.row)
        sequence.row = -1

    def schedule(self) -> Plan:
        """Admit, pick what to encode within the budget, and let everybody who is ready decode."""
        plan = Plan()
        while self.free and self.waiting:
            _, sequence = heapq.heappop(self.waiting)
            sequence.row = heapq.heappop(self.free)
            self.running[sequence.id] = sequence
            plan.admitted.append(sequence)
            if not sequence.is_ready:
                self.encoding.append(sequence)
        self.encode(plan)
        plan.batch = [s for s in self.running.values() if s.is_ready]
        if plan.batch:
            limit = self.burst_limit(plan.batch)
            plan.cursors = [s.cursor(limit) for s in plan.batch]
        return plan

    def encode(self, plan: Plan) -> None:
        """Pieces for those who wait to be encoded, the first in line as far as the budget goes, all of them replays or none."""
        replay = bool(self.encoding) and self.encoding[0].must_replay
        budget = max(1, min(MAX_ENCODE, int(ENCODE_SECONDS / self.seconds_per_encoded[replay])))
        while budget > 0 and self.encoding and self.encoding[0].must_replay == replay:
            sequence = self.encoding[0]
            piece = sequence.next_piece(self.chunk, budget)
            plan.pieces.append(piece)
            sequence.encoded += len(piece.tokens)
            budget -= len(piece.tokens)
            if sequence.is_ready:
                self.encoding.popleft()

    def burst_limit(self, batch: list[Sequence]) -> int:
        """Steps of this burst: one for a new sequence's first token, then doubling, as many as fit BURST_SECONDS."""
        youngest = min(s.bursts for s in batch)
        return max(1, min(MAX_BURST, 1 << min(youngest, 6), int(BURST_SECONDS / max(self.seconds_per_step, 1e-6))))

    def update(self, plan: Plan, drawn: list[Drawn], encode_s: float, decode_s: float) -> list[Sequence]:
        """Enter what a step drew, and the seconds of its two halves; the sequences that ended by it."""
        if plan.pieces:
            replay, seconds = plan.pieces[0].replay, encode_s / sum(len(piece.tokens) for piece in plan.pieces)
            # Slower is believed at once and faster by halves: a step that takes too long looks like a hang.
            self.seconds_per_encoded[replay] = max(seconds, self.seconds_per_encoded[replay] / 2, 1e-9)
        if plan.cursors:
            steps = max(cursor.steps for cursor in plan.cursors)
            self.seconds_per_step += 0.2 * (decode_s / steps - self.seconds_per_step)
        finished = []
        for sequence, result in zip(plan.batch, drawn, strict=True):
            sequence.append(result)
            if sequence.is_finished:
                finished.append(sequence)
            elif not sequence.is_ready:
                self.encoding.append(sequence)
        for sequence in finished:
            self.end(sequence)
        if not self.known:
            self.check_books()
        return finished

    def check_books(self) -> None:
        """When nothing is known, every row is free exactly once and no list holds anything."""
        assert sorted(self.free) == list(range(self.num_rows)), f"rows lost: {sorted(self.free)}"
        assert not self.running and not self.waiting and not self.encoding, "a sequence outlived its end"
