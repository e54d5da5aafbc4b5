"""One generation as its reader sees it: tokens come in, merged text goes out, stops are found, and every ending is one ending.

A slow reader gets fewer, larger chunks. When too many tokens wait unread the generation is suspended: the worker forgets it, which
frees its row, and it is submitted again, with all its tokens, once the reader is back.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator
from typing import Protocol, Self

from model.tokenizer.base import Detokenizer
from service.engine.errors import EngineError
from service.engine.interface import Chunk, Completion, FinishReason, GenerationRequest, ServedCheckpoint, TokenLogprob
from service.engine.stop_strings import StopMatcher
from service.worker.messages import Output, Submit

WireLogprobs = list[tuple[float, list[tuple[int, float]]]]


class StreamOwner(Protocol):
    """What a stream asks of the engine."""

    def submit(self, stream: EngineStream) -> None:
        """Generate for it, or go on after the tokens that it has."""
        ...

    def withdraw(self, stream: EngineStream) -> None:
        """Stop generating for it; it will be submitted again."""
        ...

    def release(self, stream: EngineStream) -> None:
        """It is over. Idempotent."""
        ...


class EngineStream:
    """`interface.TextStream`. Its owner calls `on_started`, `on_tokens` and `fail`; a route iterates.

    ``order`` is its place in the queue; ``buffer`` how many tokens may wait unread before it is suspended.
    """

    def __init__(self, owner: StreamOwner, checkpoint: ServedCheckpoint, request: GenerationRequest, order: int, buffer: int) -> None:
        self.owner = owner
        self.checkpoint = checkpoint
        self.request = request
        self.order = order
        self.buffer = buffer
        self.tokens = array("i", request.generated)  # everything generated, up to the end of a stop: a rebuilt sequence goes on from it
        self.num_given = len(request.generated)
        self.given_end = 0  # length of the given tokens' text, but for a character that they only begin
        self.ends = array("q")  # offset of each decoded token's end in the text, whose last character may be yet to come
        self.wire_logprobs: WireLogprobs = []  # of each token that was not given, if asked for
        self.logprobs: list[TokenLogprob] = []  # of each decoded one of them
        self.detokenizer = Detokenizer(checkpoint.tokenizer)
        self.parts: list[str] = []  # text that was handed out or withheld on purpose
        self.pending = ""  # decoded text after that
        self.released = 0  # length of ``parts`` together
        self.matcher = StopMatcher(request.stop)
        self.finish_reason: FinishReason | None = None
        self.error: EngineError | None = None
        self.closed = False  # the reader has left or read to the end
        self.suspended = False
        self.wake = asyncio.Event()
        self.created = time.monotonic()
        self.first_token: float | None = None
        self.started = False
        self.queue_s = 0.0
        self.num_passes = 0  # of the model, in which its tokens were drawn
        self.deadline = asyncio.get_running_loop().call_later(request.timeout_s, self.expire)
        if self.num_given:  # a stop may be complete in what was given, and nothing may be left to generate
            self.finish_reason = "length" if self.num_given >= request.params.max_new_tokens else None
            self.wake.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is wanted of the engine."""
        return self.closed or self.finish_reason is not None or self.error is not None

    # ---- the engine's side ---------------------------------------------------------------------------------------------

    def on_started(self, waited_s: float) -> None:
        """A row was given to it."""
        if not self.started:
            self.started, self.queue_s = True, waited_s

    def submission(self, sequence: int) -> Submit:
        """What the worker is asked for, under a number of its own: all of it, or what is left after the tokens that are there."""
        r = self.request
        prompt, tokens, guesses, scored = map(list, (r.prompt, self.tokens, r.guesses, r.scored))
        return Submit(sequence, self.order, prompt, tokens, r.params, r.key, guesses, self.num_given, scored)

    def on_tokens(self, output: Output) -> None:
        """What a step sampled."""
        self.num_passes += output.num_passes
        if self.first_token is None:
            self.first_token = time.monotonic()
        if output.logprobs is not None:
            self.wire_logprobs += output.logprobs
        self.tokens.extend(output.tokens)
        if output.finished:
            self.finish_reason = "length"
        elif len(self.tokens) - len(self.ends) > self.buffer:
            self.suspended = True
            self.owner.withdraw(self)
        self.wake.set()

    def fail(self, error: EngineError) -> None:
        """End with an error, unless it is over already."""
        if not self.is_over:
            self.error = error
            self.wake.set()

    def expire(self) -> None:
        """The request's time is over: what was generated is kept."""
        if not self.is_over:
            self.finish_reason = "timeout"
            self.owner.release(self)
            self.wake.set()

    # ---- the reader's side ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """See `interface.TextStream`."""
        if not self.closed:
            self.closed = True
            self.deadline.cancel()
            self.owner.release(self)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        sent = max(self.request.skip_tokens, self.num_given)  # tokens whose text the client has
        while not self.closed:
            await self.wake.wait()
            self.wake.clear()
            self.decode()
            is_last = self.finish_reason is not None  # what comes while the reader takes its time is decoded in the next turn
            safe = self.count_safe()
            if safe > sent:
                text = self.hand_out(self.ends[safe - 1], after=self.sent_end(sent))
                first, sent = sent, safe
                yield Chunk(safe, text, self.logprobs_of(first, safe), tuple(self.tokens[first:safe]))
            if self.error is not None:
                self.cancel()
                raise self.error
            if is_last:
                rest = self.hand_out(self.released + len(self.pending), after=self.sent_end(sent))
                self.cancel()
                if rest and sent <= len(self.ends):  # a stop that begins inside a token leaves a part of it
                    yield Chunk(len(self.tokens), rest, tokens=tuple(self.tokens[sent:]))
            elif self.suspended:
                self.suspended = False
                self.owner.submit(self)

    def sent_end(self, sent: int) -> int:
        """Where the text of the first ``sent`` tokens ends; what was given ends with its last whole character."""
        if sent <= self.num_given:
            return self.given_end
        return self.ends[min(sent, len(self.ends)) - 1] if self.ends else 0

    def logprobs_of(self, first: int, end: int) -> tuple[TokenLogprob, ...]:
        """Those of tokens number ``first`` to ``end``, if they were asked for."""
        return tuple(self.logprobs[max(0, first - self.num_given) : max(0, end - self.num_given)])

    def decode(self) -> None:
        """Turn new tokens into text, looking for stops. The half of a character stays behind: it is no text yet."""
        fresh = self.tokens[len(self.ends) :]
        fed = self.detokenizer.feed(fresh)
        end = self.released + len(self.pending)
        if not (self.request.stop or self.wire_logprobs or self.num_given):  # nothing to be asked of each token: most texts
            self.pending += "".join([piece for piece, _ in fed])
            for piece, is_whole in fed:
                end += len(piece)
                self.ends.append(end + (not is_whole))
            if self.finish_reason == "length":
                self.pending += self.detokenizer.flush()
            return
        pieces: list[str] = []
        for token, (piece, is_whole) in zip(fresh, fed, strict=True):
            number = len(self.ends) - self.num_given
            if self.wire_logprobs and number >= 0:
                own, top = self.wire_logprobs[number]
                offset = self.ends[-1] - self.given_end if self.ends else 0
                self.logprobs.append(TokenLogprob(token, own, tuple((i, p) for i, p in top), offset))
            cut = self.matcher.feed(piece)
            pieces.append(piece)
            end += len(piece)
            self.ends.append(end + (not is_whole))
            if number < 0:
                self.given_end = end
            if cut is not None:
                self.stop_at(cut, pieces)
                return
        if self.finish_reason == "length":  # after a timeout a half stays away: it would not be a prefix of the whole text
            pieces.append(self.detokenizer.flush())
            if (cut := self.matcher.feed(pieces[-1])) is not None:
                self.stop_at(cut, pieces)
                return
        self.pending += "".join(pieces)

    def stop_at(self, cut: int, pieces: list[str]) -> None:
        """A stop is complete: the text ends where it starts, and later tokens never happened."""
        self.pending = (self.pending + "".join(pieces))[: cut - self.released]
        del self.tokens[len(self.ends) :]
        self.finish_reason = "stop"
        self.owner.release(self)

    def count_safe(self) -> int:
        """How many tokens' text can be sent whole: no stop may begin in it any more."""
        safe = self.released + len(self.pending) - (0 if self.finish_reason else self.matcher.held)
        count = len(self.ends)
        while count and self.ends[count - 1] > safe:
            count -= 1
        return count

    def hand_out(self, end: int, after: int) -> str:
        """Move text up to offset ``end`` out of the buffer; what of it lies behind offset ``after``."""
        start, part = self.released, self.pending[: end - self.released]
        self.pending = self.pending[len(part) :]
        self.parts.append(part)
        self.released += len(part)
        return part[max(0, after - start) :]

    @property
    def completion(self) -> Completion:
        """See `interface.TextStream`."""
        assert self.finish_reason is not None, "the stream has not been read to its end"
        now, whole = time.monotonic(), len(self.ends)
        text = "".join(self.parts) + self.pending
        while whole and self.ends[whole - 1] > len(text):
            whole -= 1
        return Completion(
            text=text[self.given_end :],
            finish_reason=self.finish_reason,
            completion_tokens=len(self.tokens),
            logprobs=self.logprobs_of(0, whole),
            tokens=tuple(self.tokens[self.num_given :]),
            queue_s=self.queue_s,
            ttft_s=(self.first_token or now) - self.created,
            total_s=now - self.created,
            num_passes=self.num_passes,
        )
