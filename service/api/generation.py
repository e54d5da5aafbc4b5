"""Reads texts from the engine to their ends: metered, logged, cancelled. One reply and a stream of events are the same reading.

plan ──► engine ──► Generation.read ──► merged ──┬──► complete ──► one JSON
                                                 └──► events ────► bytes of server-sent events
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Protocol, Self

from starlette.types import Receive

from service.api.no_text import NoText
from service.api.plan import Plan
from service.api.receipt import sha256_text
from service.engine.errors import EngineStopping
from service.engine.interface import Chunk, Completion, TextStream
from service.errors import ApiError, as_api_error
from service.http.sse import unless_gone
from service.request_state import RequestState
from service.settings import ANONYMOUS
from service.state import Service
from service.telemetry.metrics import Where

logger = logging.getLogger("folio")

MAX_HELD_LOGPROBS = 1 << 21
"""Log-probabilities that all running answers may come to together: some 140 bytes each, so 300 MB."""
BUSY_RETRY_S = 5.0


class Generation:
    """One admitted text: what was planned, the engine's stream of it, and how far it has been read."""

    completion: Completion
    """The whole text, once `read` is through."""

    def __init__(self, service: Service, plan: Plan, stream: TextStream, state: RequestState) -> None:
        self.service, self.plan, self.stream, self.state = service, plan, stream, state
        self.metrics = service.metrics
        self.index = plan.resume_from or plan.num_given  # tokens whose text was read
        self.ended = False
        self.last_read = 0.0  # time.monotonic() of the last chunk
        self.key_tokens = self.metrics.tokens.labels(state.key or ANONYMOUS)
        self.metrics.prompt_tokens.inc(plan.num_prompt)
        self.count(plan.num_prompt)

    async def __aenter__(self) -> Self:
        await self.stream.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.service.held_logprobs -= self.plan.num_logprobs
        await self.stream.__aexit__(*exc)

    async def read(self) -> AsyncGenerator[Chunk, None]:
        """Every chunk. Closed or cancelled early, the text counts as cancelled. Raises EngineError."""
        try:
            async for chunk in self.stream:
                self.measure(chunk)
                yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            self.cancel("running" if self.last_read else "queued")  # only one that has its first token is known to run
            raise
        except EngineStopping:
            self.cancel("shutdown")
            raise
        self.finish(self.stream.completion)

    def is_whole(self) -> bool:
        """Whether all of the text has arrived: it did not fail, and no time ran out."""
        return self.ended and self.completion.finish_reason != "timeout"

    def count(self, tokens: int) -> None:
        """Tokens that its key has to answer for."""
        self.state.used_tokens += tokens
        self.key_tokens.inc(tokens)

    def measure(self, chunk: Chunk) -> None:
        """Text has arrived."""
        now = time.monotonic()
        tokens = max(chunk.index - self.index, 0)
        self.metrics.generation_tokens.inc(tokens)
        self.count(tokens)
        if not self.last_read:
            self.metrics.ttft.observe(now - self.state.started)
        elif tokens > 0:
            self.metrics.itl.observe((now - self.last_read) / tokens)
        self.index, self.last_read = chunk.index, now

    def cancel(self, where: Where) -> None:
        """The rest of the text is not wanted, or not to be had."""
        self.stream.cancel()
        self.metrics.cancelled.labels(where).inc()
        self.state.fields |= {"cancelled": where, "completion_tokens": self.index}

    def finish(self, completion: Completion) -> None:
        """All text has arrived."""
        self.completion, self.ended = completion, True
        rest = max(completion.completion_tokens - self.index, 0)
        self.metrics.generation_tokens.inc(rest)
        self.count(rest)
        self.metrics.success.labels(completion.finish_reason).inc()
        self.index = completion.completion_tokens
        self.metrics.queue.observe(completion.queue_s)
        self.metrics.e2e.observe(time.monotonic() - self.state.started)
        self.state.fields |= {
            "finish_reason": completion.finish_reason,
            "completion_tokens": len(completion.tokens),
            "text_sha256": sha256_text(completion.text),
            "queue_ms": round(completion.queue_s * 1e3, 3),
            "ttft_ms": round(completion.ttft_s * 1e3, 3),
        }


def admit(service: Service, state: RequestState, plans: Sequence[Plan]) -> list[Generation]:
    """Admit all of several texts or none; each is a context that gives up what it holds. Raises ApiError and EngineError."""
    wanted = sum(plan.num_logprobs for plan in plans)
    if wanted and service.held_logprobs + wanted > MAX_HELD_LOGPROBS:
        message = (
            f"running answers hold {service.held_logprobs} log-probabilities of {MAX_HELD_LOGPROBS}; try again later, or ask for fewer"
        )
        raise ApiError("queue_full", message, param="logprobs", retry_after_s=BUSY_RETRY_S)
    admitted = iter(service.admit(state, *(plan.request for plan in plans if plan.request.params.max_new_tokens)))
    service.held_logprobs += wanted
    streams = [next(admitted) if plan.request.params.max_new_tokens else NoText(plan.checkpoint) for plan in plans]
    return [Generation(service, plan, stream, state) for plan, stream in zip(plans, streams, strict=True)]


async def merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Chunk | None], None]:
    """Chunks of all texts as they come, each with its text's number; None when that text has ended. Raises what any of them raises.

    Each text is read at most one chunk ahead of whoever iterates: a slow reader slows them all, and no buffer grows.
    """
    if len(generations) == 1:
        async with aclosing(generations[0].read()) as chunks:
            async for chunk in chunks:
                yield 0, chunk
        yield 0, None
        return
    queue: asyncio.Queue[tuple[int, Chunk | Exception | None]] = asyncio.Queue(maxsize=1)

    async def fill(index: int) -> None:
        try:
            async with aclosing(generations[index].read()) as chunks:
                async for chunk in chunks:
                    await queue.put((index, chunk))
        except Exception as error:
            await queue.put((index, error))
        else:
            await queue.put((index, None))

    tasks = [asyncio.create_task(fill(index)) for index in range(len(generations))]
    try:
        running = len(tasks)
        while running:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            running -= item is None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def complete(generations: Sequence[Generation], receive: Receive) -> list[Completion]:
    """All texts, whole. Raises EngineError, and ClientGoneError when the client leaves before the last has ended."""
    async with AsyncExitStack() as stack:
        for generation in generations:
            await stack.enter_async_context(generation)
        await unless_gone(receive, drain(generations))
    return [generation.completion for generation in generations]


async def drain(generations: Sequence[Generation]) -> None:
    """Read all texts to their ends."""
    async with aclosing(merged(generations)) as chunks:
        async for _ in chunks:
            pass


class EventFormat(Protocol):
    """How one route writes its events. Nothing is sent where it writes nothing."""

    def begin(self, index: int) -> bytes:
        """Before a text."""
        ...

    async def chunk(self, index: int, chunk: Chunk) -> bytes:
        """Some of a text."""
        ...

    def end(self, index: int, completion: Completion) -> bytes:
        """A text has ended."""
        ...

    async def close(self, completions: Sequence[Completion]) -> bytes:
        """All have ended."""
        ...

    def error(self, error: ApiError) -> bytes:
        """Something went wrong; nothing follows."""
        ...


async def events(generations: Sequence[Generation], form: EventFormat) -> AsyncGenerator[bytes, None]:
    """An answer's events. Exactly one ending closes them, whatever goes wrong; left early, the texts count as cancelled."""
    state = generations[0].state
    try:
        for index in range(len(generations)):
            if begun := form.begin(index):
                yield begun
        async with aclosing(merged(generations)) as chunks:
            async for index, chunk in chunks:
                written = form.end(index, generations[index].completion) if chunk is None else await form.chunk(index, chunk)
                if written:
                    yield written
        yield await form.close([generation.completion for generation in generations])
    except Exception as error:
        refused = as_api_error(error)
        state.code = refused.code
        if refused.status == 500:
            logger.error("a stream failed", exc_info=error, extra={"fields": {"request_id": state.request_id}})
        yield form.error(refused)
