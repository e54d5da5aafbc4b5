"""One request's state in the engine, and its own arithmetic. No torch.

A sequence is in a row with some of its window encoded. It is ready to decode when all but its last token are; the last one is
encoded by the decode step that draws the next. When the window moves, nothing is encoded any more and it starts over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.params import SamplingParams
from model.window import window_anchor, window_start
from service.worker.runners.interface import Cursor, Drawn, Piece


@dataclass(slots=True, eq=False)
class Sequence:
    """See the module. ``tokens`` is the prompt (or the start token) and everything generated."""

    id: int
    prompt: list[int]
    params: SamplingParams
    stride: int
    block_size: int
    tokens: list[int]
    num_prompt: int
    """Tokens before the first generated one: the prompt's length, or 1 for the start token."""
    row: int = -1
    encoded: int = 0
    """How many tokens of the present window are in the cache."""
    start: int = field(init=False)
    """Index of the window's first token."""
    bursts: int = 0
    """Bursts decoded since it got its row; the first ones are short."""

    def __post_init__(self) -> None:
        self.start = window_start(len(self.tokens), self.block_size, self.stride)

    @property
    def num_generated(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens still to draw."""
        return self.params.max_new_tokens - self.num_generated

    @property
    def is_finished(self) -> bool:
        """Whether every token that was asked for is drawn."""
        return self.num_remaining <= 0

    @property
    def is_ready(self) -> bool:
        """Whether the next thing to do is a decode step."""
        return self.encoded == len(self.tokens) - self.start - 1

    @property
    def anchor(self) -> int:
        """How many tokens of the present window are encoded together; the others were decoded one by one and must be replayed so."""
        return window_anchor(len(self.tokens), self.num_prompt, self.block_size, self.stride) - self.start - 1

    @property
    def must_replay(self) -> bool:
        """Whether the next piece is a replay."""
        return self.encoded >= self.anchor

    def next_piece(self, chunk: int, limit: int) -> Piece:
        """The next tokens to encode: to the next multiple of ``chunk`` and not beyond the anchor, or ``limit`` at most to replay."""
        if self.must_replay:
            end = min(len(self.tokens) - self.start - 1, self.encoded + limit, (self.encoded // chunk + 1) * chunk)
        else:
            end = min(self.anchor, (self.encoded // chunk + 1) * chunk)
        return Piece(self.row, self.encoded, self.tokens[self.start + self.encoded : self.start + end], self.must_replay)

    def cursor(self, limit: int) -> Cursor:
        """Where to go on, for at most ``limit`` steps and only as long as the window stays."""
        room = self.block_size + self.start - len(self.tokens) + 1
        return Cursor(self.row, self.tokens[-1], len(self.tokens) - self.start - 1, min(limit, self.num_remaining, room))

    def append(self, drawn: Drawn) -> None:
        """Take what a burst drew; move the window when it is full."""
        self.tokens += drawn.tokens
        self.bursts += 1
        start = window_start(len(self.tokens), self.block_size, self.stride)
        self.encoded = len(self.tokens) - start - 1 if start == self.start else 0
        self.start = start
