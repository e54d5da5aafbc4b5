"""What completions and chat have in common: a plan for each choice, and OpenAI's JSON around their texts, whole or in chunks."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from model.params import MAX_SEED
from service.api.events import LEAST_LOGPROB, TOKENS_AT_ONCE
from service.api.fields import shown
from service.api.generation import Generation
from service.api.openai_schemas import OpenAIBody
from service.api.plan import Plan, check_size, drawn_seed, make_plan, sampling_params
from service.engine.interface import Chunk, Completion, ServedCheckpoint, TokenLogprob
from service.errors import ApiError, error_object
from service.state import Service

DONE = b"data: [DONE]\n\n"
FINISH_REASONS = {"length": "length", "stop": "stop", "timeout": "length"}
"""OpenAI has no ``timeout``."""


def find_model(service: Service, name: str | None) -> ServedCheckpoint:
    """A loaded checkpoint by its id, the current one by the served name. Raises ApiError, and EngineError while there is none."""
    current = service.checkpoint()
    if name in (None, service.settings.served_model_name):
        return current
    for checkpoint in service.engine.loaded:
        if checkpoint.id == name:
            return checkpoint
    served = ", ".join([service.settings.served_model_name, *(checkpoint.id for checkpoint in service.engine.loaded)])
    raise ApiError("checkpoint_not_found", f"there is no model {shown(str(name))!r}; what is served: {served}", param="model")


def plan_choices(
    service: Service,
    checkpoint: ServedCheckpoint,
    body: OpenAIBody,
    prompts: Sequence[tuple[str, tuple[int, ...]]],
    max_tokens: int,
    num_logprobs: int | None,
) -> list[Plan]:
    """A plan for each choice of each prompt, which is text and tokens: choice c uses seed + c. Raises ApiError."""
    check_size(service, "max_tokens", max_tokens, num_logprobs, choices=len(prompts) * body.n)
    seed, bias = drawn_seed(body.seed), bias_by_id(body.logit_bias, checkpoint.vocab_size)
    plans = []
    for text, ids in prompts:
        for choice in range(body.n):
            seed_of_choice = (seed + choice) % (MAX_SEED + 1)
            params = sampling_params(service, body, checkpoint, max_tokens, bias, num_logprobs, seed_of_choice)
            plans.append(make_plan(checkpoint, body, params, text, ids))
    return plans


def bias_by_id(bias: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Token id (as text, JSON has no other keys) → addend as sorted pairs. Raises ApiError."""
    for id in bias:
        if not (id.isascii() and id.isdigit() and len(id) < 10 and int(id) < vocab_size and str(int(id)) == id):
            message = f"logit_bias: {shown(id)!r} is no token id below {vocab_size}"
            raise ApiError("invalid_request", message, param="logit_bias")
    return tuple(sorted((int(id), value) for id, value in bias.items() if value))


def json_logprob(logprob: float) -> float:
    """A log-probability as JSON has it: minus infinity is a very small number, as on the native route."""
    return max(logprob, LEAST_LOGPROB)


class OpenAIReply(ABC):
    """One answer's JSON: `whole`, or as `generation.EventFormat` its chunks."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, body: OpenAIBody, generations: Sequence[Generation]) -> None:
        self.body, self.generations = body, generations
        self.state = generations[0].state
        self.checkpoint = generations[0].plan.checkpoint
        self.id, self.created = f"{self.id_prefix}-{self.state.request_id}", int(time.time())

    # ---- what differs -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def whole_choice(self, text: str, logprobs: dict[str, list[Any]] | None) -> dict[str, Any]:
        """A whole text's fields beside its index and the reason of its end."""

    @abstractmethod
    def chunk_choice(self, text: str, logprobs: dict[str, list[Any]] | None) -> dict[str, Any]:
        """The same of some text."""

    @abstractmethod
    def logprobs(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, list[Any]]:
        """Log-probabilities of some tokens, as lists by name; ``offset`` characters stand before the text that they are of."""

    def prompt_logprobs(self, index: int) -> dict[str, list[Any]] | None:
        """The same of a text's prompt, if they are asked for."""
        return None

    def extra(self) -> dict[str, Any]:
        """Further fields of the envelope."""
        return {}

    # ---- one JSON ---------------------------------------------------------------------------------------------------------

    async def whole(self) -> bytes:
        """The reply as one JSON, of texts that have ended."""
        choices = []
        for index, generation in enumerate(self.generations):
            completion = generation.completion
            text = generation.plan.echoed + completion.text
            choice = self.whole_choice(text, await self.all_logprobs(index))
            reason = FINISH_REASONS[completion.finish_reason]
            choices.append({"index": index, **choice, "finish_reason": reason})
        return json.dumps(self.envelope(self.whole_object, choices) | {"usage": self.final_usage()}).encode("ascii")

    async def all_logprobs(self, index: int) -> dict[str, list[Any]] | None:
        """A whole text's, made in slices so that nobody waits for them."""
        generation = self.generations[index]
        if generation.plan.request.params.num_logprobs is None:
            return None
        merged, logprobs = self.prompt_logprobs(index) or self.logprobs(()), generation.completion.logprobs
        offset = len(generation.plan.echoed)
        for first in range(0, len(logprobs), TOKENS_AT_ONCE):
            for name, values in self.logprobs(logprobs[first : first + TOKENS_AT_ONCE], offset).items():
                merged[name] += values
            await asyncio.sleep(0)
        return merged

    def envelope(self, object_name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """What stands around choices, in a reply and in a chunk."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.checkpoint.id,
            "system_fingerprint": self.checkpoint.fingerprint,
            **self.extra(),
            "choices": choices,
        }

    def usage(self) -> dict[str, int]:
        """Tokens so far, of all choices; a prompt counts once for all of its own."""
        prompt = sum(len(generation.plan.request.prompt) for generation in self.generations[:: self.body.n])
        completion = sum(generation.index for generation in self.generations)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def final_usage(self) -> dict[str, int]:
        """Tokens of texts that have ended, for the log too."""
        usage = self.usage()
        self.state.fields |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
        return usage

    # ---- chunks -----------------------------------------------------------------------------------------------------------

    @cached_property
    def wants_usage(self) -> bool:
        """Whether a last chunk tells the token counts; every chunk then has the field."""
        return self.body.stream_options is not None and self.body.stream_options.include_usage

    @cached_property
    def wants_usage_now(self) -> bool:
        """Whether every chunk tells the token counts so far."""
        return self.body.stream_options is not None and self.body.stream_options.continuous_usage_stats

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What stands before and after the one choice of a chunk: the same each time, so it is written once."""
        usage = {"usage": None} if self.wants_usage else {}
        before, _, after = json.dumps(self.envelope(self.chunk_object, []) | usage).partition('"choices": [')
        return f'data: {before}"choices": [', f"{after}\n\n"

    def event(self, index: int, choice: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """One chunk."""
        choice = {"index": index, **choice, "finish_reason": finish_reason}
        if self.wants_usage_now:
            document = self.envelope(self.chunk_object, [choice]) | {"usage": self.usage()}
            return f"data: {json.dumps(document)}\n\n".encode("ascii")
        before, after = self._around
        return (before + json.dumps(choice) + after).encode("ascii")

    def begin(self, index: int) -> bytes:
        """The prompt, if it is asked for."""
        echoed = self.generations[index].plan.echoed
        return self.event(index, self.chunk_choice(echoed, self.prompt_logprobs(index))) if echoed else b""

    async def chunk(self, index: int, chunk: Chunk) -> bytes:
        """Some text."""
        offset = len(self.generations[index].plan.echoed)
        logprobs = self.logprobs(chunk.logprobs, offset) if chunk.logprobs else None
        return self.event(index, self.chunk_choice(chunk.text, logprobs))

    def end(self, index: int, completion: Completion) -> bytes:
        """The chunk that says why a text ended."""
        return self.event(index, self.chunk_choice("", None), FINISH_REASONS[completion.finish_reason])

    async def close(self, completions: Sequence[Completion]) -> bytes:
        """The token counts, if they are asked for, and OpenAI's mark of a success."""
        usage = self.final_usage()
        if not self.wants_usage:
            return DONE
        return f"data: {json.dumps(self.envelope(self.chunk_object, []) | {'usage': usage})}\n\n".encode("ascii") + DONE

    def error(self, error: ApiError) -> bytes:
        """A failed stream's last event; no ``[DONE]`` follows, so no client takes it for a success."""
        fields = error_object(error, self.state.request_id, openai=True)
        return b"data: %b\n\n" % json.dumps({"error": fields}).encode("ascii")
