"""One request's state in the engine, and its own arithmetic. No torch.

    tokens   p p p p p g g g g g      p: prompt, g: generated
             └ start     └ cached     the window starts at ``start``; the first ``num_cached`` of its tokens are in the cache

A sequence is ready to decode when all tokens of its window but the last are cached: the last one is the input of the decode step
that samples the next. When the window moves, nothing in it is cached any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from model.params import SamplingParams
from model.window import window_start
from service.worker.runners.interface import DecodeSlot, PrefillChunk, SampledTokens

SCORED_BIAS = 100.0
"""Makes any token the most likely one, unless its probability is below e^-100."""


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
    scored: list[int] = field(default_factory=list)
    """Tokens that come out whatever is likely; empty where they are sampled."""
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
        num_steps, done = min(1 if self.scored else num_steps, self.num_remaining, room), self.num_generated
        return DecodeSlot(self.row, self.tokens[-1], self.last_position, num_steps, self.guesses[done : done + num_steps])

    @property
    def scoring_params(self) -> SamplingParams:
        """Parameters that draw the next token to score: log-probabilities are the model's own, so they do not notice."""
        bias = ((self.scored[self.num_generated], SCORED_BIAS),)
        return replace(self.params, temperature=0.0, logit_bias=bias)

    def as_scored(self, sampled: SampledTokens) -> SampledTokens:
        """What was drawn, if it is the token to score; else that token is less likely than a bias can make up for."""
        token = self.scored[self.num_generated]
        if sampled.tokens == [token] or sampled.logprobs is None:
            return sampled
        (_, top), *_ = sampled.logprobs
        return replace(sampled, tokens=[token], logprobs=[(-SCORED_BIAS, top)])

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
