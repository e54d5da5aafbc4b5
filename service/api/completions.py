"""What /v1/completions makes of a body: one plan for each choice, and OpenAI's JSON of their texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from model.params import MAX_SEED
from model.tokenizer.base import Tokenizer
from service.api.events import TOKENS_AT_ONCE
from service.api.parsing import shown
from service.api.plan import Plan, check_size, drawn_seed, encode, make_plan, sampling_params
from service.api.schemas import CompletionBody
from service.engine.interface import Chunk, Completion, ServedCheckpoint, TextStream, TokenLogprob
from service.errors import ApiError, error_object
from service.http.sse import Emit
from service.request_state import RequestState
from service.state import Service
from service.telemetry.metrics import Meter

DONE = b"data: [DONE]\n\n"
Consume = Callable[[TextStream, Meter, Callable[[Chunk], Awaitable[None]] | None, RequestState], Awaitable[Completion]]


def plan_completions(service: Service, body: CompletionBody) -> list[Plan]:
    """The choices that a body asks for: choice c of a prompt uses seed + c. Raises ApiError and EngineError."""
    checkpoint = service.checkpoint()
    if body.model is not None and body.model != checkpoint.id:
        checkpoint = next((each for each in service.engine.loaded if each.id == body.model), None) or unknown_model()
    prompts = split_prompts(body.prompt)
    check_size(service, "max_tokens", body.max_tokens, body.logprobs, choices=len(prompts) * body.n)
    seed, bias = drawn_seed(body.seed), bias_by_id(body.logit_bias, checkpoint.vocab_size)
    plans = []
    for prompt in prompts:
        text, ids = encode_prompt(prompt, body.on_unknown, checkpoint.tokenizer)
        for choice in range(body.n):
            seed_of_choice = (seed + choice) % (MAX_SEED + 1)
            params = sampling_params(service, body, checkpoint, body.max_tokens, bias, body.logprobs, seed_of_choice)
            plans.append(make_plan(checkpoint, body, params, text, ids))
    return plans


def unknown_model() -> ServedCheckpoint:
    """Raises ApiError."""
    raise ApiError("checkpoint_not_found", "no model of this id is loaded: see /v1/models", param="model")


def split_prompts(prompt: str | list[int] | list[str | list[int]]) -> list[str | list[int]]:
    """One prompt or several, each text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    several = [each for each in prompt if not isinstance(each, int)]
    return several or [[each for each in prompt if isinstance(each, int)]]


def encode_prompt(prompt: str | list[int], on_unknown: str, tokenizer: Tokenizer) -> tuple[str, tuple[int, ...]]:
    """A prompt as text and as tokens. Raises ApiError."""
    if isinstance(prompt, str):
        return encode(prompt, on_unknown, tokenizer)
    if max(prompt) >= tokenizer.vocab_size:
        raise ApiError("invalid_request", f"prompt: token ids are below {tokenizer.vocab_size}", param="prompt")
    return tokenizer.decode(prompt), tuple(prompt)


def bias_by_id(bias: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Token id (as text, JSON has no other keys) → addend as sorted pairs. Raises ApiError."""
    for id in bias:
        if not (id.isascii() and id.isdigit() and len(id) < 10 and int(id) < vocab_size and str(int(id)) == id):
            raise ApiError("invalid_request", f"logit_bias: {shown(id)!r} is no token id below {vocab_size}", param="logit_bias")
    return tuple(sorted((int(id), value) for id, value in bias.items() if value))


@dataclass(frozen=True)
class Choices:
    """Writes the JSON of one answer's choices."""

    checkpoint: ServedCheckpoint
    body: CompletionBody
    id: str
    created: int

    def envelope(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """What stands around choices, in a reply and in a chunk."""
        envelope: dict[str, Any] = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.checkpoint.id,
            "system_fingerprint": self.checkpoint.fingerprint,
            "choices": choices,
        }
        if usage is not None or self.includes_usage:
            envelope["usage"] = usage
        return envelope

    @property
    def includes_usage(self) -> bool:
        """Whether a stream's client asked for token counts; every chunk then has the field."""
        return self.body.stream_options is not None and self.body.stream_options.include_usage

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What stands before and after the one choice of a chunk: the same each time, so it is written once."""
        before, _, after = json.dumps(self.envelope([])).partition('"choices": [')
        return f'data: {before}"choices": [', f"{after}\n\n"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One event of a stream."""
        before, after = self._around
        return (before + json.dumps(choice) + after).encode("ascii")

    def usage_chunk(self, usage: dict[str, int]) -> bytes:
        """The event that tells the token counts."""
        return f"data: {json.dumps(self.envelope([], usage))}\n\n".encode("ascii")

    def logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]] | None:
        """OpenAI's four lists."""
        if self.body.logprobs is None:
            return None
        texts = self.checkpoint.tokenizer.texts
        return {
            "tokens": [texts[each.id] for each in logprobs],
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [{texts[id]: value for id, value in each.top} for each in logprobs],
            "text_offset": [each.offset for each in logprobs],
        }


class Completions:
    """Runs the choices beside each other; as a context it holds their streams."""

    def __init__(
        self, choices: Choices, plans: list[Plan], streams: list[TextStream], meters: list[Meter], state: RequestState, consume: Consume
    ) -> None:
        self.choices, self.plans, self.streams, self.meters, self.state, self.consume = choices, plans, streams, meters, state, consume
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for stream in self.streams:
            await self._stack.enter_async_context(stream)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def usage(self, completions: Sequence[Completion]) -> dict[str, int]:
        """Tokens of all choices; a prompt counts once for all of its own."""
        prompt = sum(len(plan.request.prompt) for plan in self.plans[:: self.choices.body.n])
        completion = sum(each.completion_tokens for each in completions)
        self.state.fields |= {"prompt_tokens": prompt, "completion_tokens": completion}
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def all(self, run: Callable[[int], Awaitable[Completion]]) -> list[Completion]:
        """Every choice to its end, or the first error after the others were ended."""
        tasks = [asyncio.ensure_future(run(index)) for index in range(len(self.streams))]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def whole(self) -> bytes:
        """The reply as one JSON."""
        completions = await self.all(lambda i: self.consume(self.streams[i], self.meters[i], None, self.state))
        choices = []
        for index, (plan, completion) in enumerate(zip(self.plans, completions, strict=True)):
            logprobs = await self.logprobs(completion)
            choices.append(choice(index, plan.echoed + completion.text, logprobs, completion))
        reply = self.choices.envelope(choices, self.usage(completions))
        return json.dumps(reply).encode("ascii")

    async def logprobs(self, completion: Completion) -> dict[str, list[Any]] | None:
        """A whole choice's, made in slices so that nobody waits for them."""
        merged = self.choices.logprobs(())
        for first in range(0, len(completion.logprobs) if merged else 0, TOKENS_AT_ONCE):
            part = self.choices.logprobs(completion.logprobs[first : first + TOKENS_AT_ONCE])
            for name in merged or ():
                merged[name] += part[name]  # type: ignore[index]
            await asyncio.sleep(0)
        return merged

    async def produce(self, emit: Emit) -> bytes:
        """A stream's events: the choices' chunks as they come, each choice's ending, the token counts, ``[DONE]``."""

        async def run(index: int) -> Completion:
            if self.plans[index].echoed:
                await emit(self.choices.chunk(choice(index, self.plans[index].echoed, None)))

            async def each(chunk: Chunk) -> None:
                await emit(self.choices.chunk(choice(index, chunk.text, self.choices.logprobs(chunk.logprobs))))

            completion = await self.consume(self.streams[index], self.meters[index], each, self.state)
            await emit(self.choices.chunk(choice(index, "", None, completion)))
            return completion

        usage = self.usage(await self.all(run))
        return (self.choices.usage_chunk(usage) if self.choices.includes_usage else b"") + DONE

    def fail(self, error: ApiError) -> bytes:
        """A failed stream's last event; no ``[DONE]`` follows, so no client takes it for a success."""
        return b"data: %b\n\n" % json.dumps({"error": error_object(error, self.state.request_id, openai=True)}).encode("ascii")


def choice(index: int, text: str, logprobs: dict[str, list[Any]] | None, completion: Completion | None = None) -> dict[str, Any]:
    """One choice, ended if its completion is given; OpenAI has no ``timeout``."""
    reason = completion and {"length": "length", "stop": "stop", "timeout": "length"}[completion.finish_reason]
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
