"""What /v1/completions makes of a body: one plan for each choice, and OpenAI's JSON of their texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from model.params import MAX_SEED
from model.tokenizer.base import Tokenizer
from service.api.events import TOKENS_AT_ONCE
from service.api.generation import Generation
from service.api.plan import Plan, check_size, drawn_seed, encode, make_plan, sampling_params
from service.api.schemas import CompletionBody, shown
from service.engine.interface import Chunk, Completion, ServedCheckpoint, TokenLogprob
from service.errors import ApiError, error_object
from service.state import Service

DONE = b"data: [DONE]\n\n"


def plan_completions(service: Service, body: CompletionBody) -> list[Plan]:
    """The choices that a body asks for: choice c of a prompt uses seed + c. Raises ApiError and EngineError."""
    checkpoint = service.checkpoint() if body.model is None else find_model(service, body.model)
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


def find_model(service: Service, name: str) -> ServedCheckpoint:
    """A loaded checkpoint by its id. Raises ApiError, and EngineError while there is none at all."""
    service.checkpoint()
    for checkpoint in service.engine.loaded:
        if checkpoint.id == name:
            return checkpoint
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

    async def all_logprobs(self, completion: Completion) -> dict[str, list[Any]] | None:
        """A whole choice's, made in slices so that nobody waits for them."""
        merged = self.logprobs(())
        for first in range(0, len(completion.logprobs) if merged else 0, TOKENS_AT_ONCE):
            part = self.logprobs(completion.logprobs[first : first + TOKENS_AT_ONCE])
            for name in merged or ():
                merged[name] += part[name]  # type: ignore[index]
            await asyncio.sleep(0)
        return merged


class CompletionEvents:
    """OpenAI's chunks of all choices: `generation.EventFormat`."""

    def __init__(self, choices: Choices, generations: Sequence[Generation]) -> None:
        self.choices, self.generations = choices, generations

    def begin(self, index: int) -> bytes:
        """The prompt, if it is asked for."""
        echoed = self.generations[index].plan.echoed
        return self.choices.chunk(choice(index, echoed, None)) if echoed else b""

    async def chunk(self, index: int, chunk: Chunk) -> bytes:
        """Some of a choice's text."""
        logprobs = self.choices.logprobs(chunk.logprobs) if chunk.logprobs else None
        return self.choices.chunk(choice(index, chunk.text, logprobs))

    def end(self, index: int, completion: Completion) -> bytes:
        """The chunk that says why a choice ended."""
        return self.choices.chunk(choice(index, "", None, completion))

    async def close(self, completions: Sequence[Completion]) -> bytes:
        """The token counts, if they are asked for, and OpenAI's mark of a success."""
        usage = count_usage(self.generations, self.choices.body.n)
        return (self.choices.usage_chunk(usage) if self.choices.includes_usage else b"") + DONE

    def error(self, error: ApiError) -> bytes:
        """A failed stream's last event; no ``[DONE]`` follows, so no client takes it for a success."""
        fields = error_object(error, self.generations[0].state.request_id, openai=True)
        return b"data: %b\n\n" % json.dumps({"error": fields}).encode("ascii")


async def whole_reply(choices: Choices, generations: Sequence[Generation]) -> bytes:
    """The reply as one JSON, of texts that have ended."""
    written = []
    for index, generation in enumerate(generations):
        completion = generation.completion
        logprobs = await choices.all_logprobs(completion)
        written.append(choice(index, generation.plan.echoed + completion.text, logprobs, completion))
    return json.dumps(choices.envelope(written, count_usage(generations, choices.body.n))).encode("ascii")


def count_usage(generations: Sequence[Generation], n: int) -> dict[str, int]:
    """Tokens of all choices, for the reply and for the log; a prompt counts once for all ``n`` of its own."""
    prompt = sum(len(generation.plan.request.prompt) for generation in generations[::n])
    completion = sum(generation.completion.completion_tokens for generation in generations)
    generations[0].state.fields |= {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def choice(index: int, text: str, logprobs: dict[str, list[Any]] | None, completion: Completion | None = None) -> dict[str, Any]:
    """One choice, ended if its completion is given; OpenAI has no ``timeout``."""
    reason = completion and {"length": "length", "stop": "stop", "timeout": "length"}[completion.finish_reason]
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
