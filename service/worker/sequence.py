"""One request's state in the engine, and its own arithmetic. No torch.

    tokens   p p p p p g g g g g      p: prompt, g: generated
             └ start     └ cached     the window starts at ``start``; the first ``num_cached`` of its tokens are in the cache

A sequence is ready to decode when all tokens of its window but the last are cached: the last one is the input of the decode step
that samples the next. When the window moves, nothing in it is cached any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.params import SamplingParams
from model.window import window_start
from service.worker.runners.interface import DecodeSlot, PrefillChunk, SampledTokens


@dataclass(slots=True, eq=False)
class Sequence:
    """See the module. ``tokens`` is the prompt (or the start token) and everything generated."""

    id: int
    prompt: list[int]
    params: SamplingParams
    stride: int
    """How far the window jumps when it is full."""
    block_size: int
    """Length of a full window."""
    tokens: list[int]
    num_prompt: int
    """Tokens before the first generated one: the prompt's length, or 1 for the start token."""
    num_given: int = 0
    """Generated tokens that came with the request."""
    order: int = 0
    """When it first came: earlier ones of the same key run before it."""
    key: str = ""
    """Whose it is."""
    guesses: list[int] = field(default_factory=list)
    """What all generated tokens may turn out to be, as far as that is known; given up at the first that is wrong."""
    row: int = -1
    """-1 while it waits for one."""
    num_cached: int = 0
    start: int = field(init=False)
    """Index of the window's first token."""
    num_decodes: int = 0
    """Multi-step decodes since it got its row."""
    last_decode: int = 0
    """When it decoded last, as the scheduler counts decodes."""

    def __post_init__(self) -> None:
        self.start = window_start(len(self.tokens), self.block_size, self.stride)

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens still to sample."""
        return self.params.max_new_tokens - self.num_generated

    @property
    def is_finished(self) -> bool:
        """Whether every token that was asked for is sampled."""
        return self.num_remaining <= 0

    @property
    def last_position(self) -> int:
        """Position of the last token in the window: how many tokens must be cached before it can be decoded."""
        return len(self.tokens) - self.start - 1

    @property
    def window(self) -> list[int]:
        """The tokens that must be cached before it can be decoded: all in the window but the last."""
        return self.tokens[self.start : self.start + self.last_position]

    @property
    def cached_tokens(self) -> list[int]:
        """The tokens that are cached, from position 0 on."""
        return self.tokens[self.start : self.start + self.num_cached]

    @property
    def is_ready(self) -> bool:
        """Whether the next thing to do is a decode step."""
        return self.num_cached == self.last_position

    def next_chunk(self, budget: int) -> PrefillChunk:
        """The next tokens to prefill, at most ``budget``."""
        end = min(self.last_position, self.num_cached + budget)
        return PrefillChunk(self.row, self.num_cached, self.tokens[self.start + self.num_cached : self.start + end])

    def decode_slot(self, num_steps: int) -> DecodeSlot:
        """Go on for at most ``num_steps`` tokens, and only as long as the window stays where it is."""
        room = self.block_size - self.last_position
        num_steps, done = min(num_steps, self.num_remaining, room), self.num_generated
        return DecodeSlot(self.row, self.tokens[-1], self.last_position, num_steps, self.guesses[done : done + num_steps])

    def append(self, sampled: SampledTokens) -> None:
        """Take what a decode sampled; move the window when it is full."""
        done = self.num_generated
        if self.guesses and self.guesses[done : done + len(sampled.tokens)] != sampled.tokens:
            self.guesses = []
        self.tokens += sampled.tokens
        self.num_decodes += 1
        start = window_start(len(self.tokens), self.block_size, self.stride)
        has_moved = start != self.start
        self.start = start
        self.num_cached = 0 if has_moved else self.last_position
