"""From a checked body to what the engine is asked: the tokenizer, the server's defaults, the seed, the resumed position."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from model.params import SamplingParams
from model.tokenizer.base import Detokenizer, Tokenizer, UnknownCharacterError
from service.api.event_id import EventId, request_digest, short_checkpoint
from service.api.fields import shown
from service.api.receipt import ReceiptPlan, plan_receipt
from service.api.schemas import GenerateBody, SamplingBody
from service.engine.errors import CheckpointGone
from service.engine.interface import GenerationRequest, ServedCheckpoint
from service.errors import ApiError
from service.state import Service

MAX_LOGPROBS = 1 << 19
"""Log-probabilities in one answer, top ones included: some 40 MB of JSON."""


LEAST_FACTOR = 1e-6
"""Temperatures and repetition penalties below this act as this: a logit over 1e-310 is infinite, and infinities have no order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One text to generate, and what its answer says beside the text."""

    checkpoint: ServedCheckpoint
    request: GenerationRequest
    prompt: str
    """As the model saw it: without the characters that were dropped."""
    echo: bool
    digest: str
    generated: str = ""
    """The text of the tokens that count as generated already, but for a character that they only begin."""
    return_tokens: bool = False
    resume_from: int | None = None
    receipt: ReceiptPlan | None = None
    ended: bool = False
    """Whether the client has all of it, the end included."""

    @property
    def num_given(self) -> int:
        """Tokens that count as generated already: events are numbered from here."""
        return len(self.request.generated)

    @property
    def num_prompt(self) -> int:
        """Tokens that the request brings: its prompt's, and those given."""
        return len(self.request.prompt) + self.num_given

    @property
    def echoed(self) -> str:
        """What stands in front of the text."""
        return self.prompt + self.generated if self.echo else ""

    @property
    def num_logprobs(self) -> int:
        """How many log-probabilities the answer may come to."""
        params = self.request.params
        return 0 if params.num_logprobs is None else params.max_new_tokens * (1 + params.num_logprobs)

    @property
    def prompt_truncated(self) -> bool:
        """Whether the model saw only the prompt's end."""
        return len(self.request.prompt) > self.checkpoint.block_size


def plan_generate(service: Service, body: GenerateBody, last_event_id: str | None) -> Plan:
    """What POST /generate asks for. Raises ApiError and EngineError."""
    event = parse_event_id(body, last_event_id) if last_event_id is not None else None
    checkpoint = resumed_checkpoint(service, event) if event else service.checkpoint(body.checkpoint)
    tokenizer = checkpoint.tokenizer
    bias = bias_by_text(body.logit_bias, tokenizer)
    num_logprobs = body.top_logprobs if body.logprobs else None
    max_tokens = body.max_tokens or body.max_new_tokens
    check_size(service, "max_tokens" if body.max_tokens else "max_new_tokens", max_tokens, num_logprobs)
    params = sampling_params(service, body, checkpoint, max_tokens, bias, num_logprobs, drawn_seed(body.seed))
    prompt, ids = encode(body.prompt, body.on_unknown, tokenizer)
    generated, given = encode_generated(body, max_tokens, tokenizer)
    more: dict[str, object] = {"generated": given} if given else {}
    more |= {"return_tokens": True} if body.return_tokens else {}
    plan = make_plan(checkpoint, body, params, prompt, ids, more)
    request = replace(plan.request, generated=given)
    plan = replace(plan, request=request, generated=generated, return_tokens=body.return_tokens)
    plan = replace(plan, receipt=plan_receipt(body, params, service.receipt_key))
    if event is None:
        return plan
    if event.digest != plan.digest:
        raise ApiError("resume_mismatch", "the body is not the one that the event's stream was made for", param="Last-Event-ID")
    if not len(given) <= event.index <= params.max_new_tokens:
        between = f"between {len(given)} (what `generated` has) and max_new_tokens"
        raise ApiError("invalid_request", f"Last-Event-ID: {event.index} is not {between}", param="Last-Event-ID")
    return replace(plan, request=replace(request, skip_tokens=event.index), resume_from=event.index, ended=event.ended)


def parse_event_id(body: GenerateBody, text: str) -> EventId:
    """The position of a cut stream. Raises ApiError."""
    try:
        event = EventId.parse(text)
    except ValueError as error:
        raise ApiError("invalid_request", f"Last-Event-ID: {error}", param="Last-Event-ID") from None
    if not body.stream:
        raise ApiError("invalid_request", "Last-Event-ID resumes streams only", param="Last-Event-ID")
    if body.seed is None:
        raise ApiError("invalid_request", "seed: resuming needs the seed of the stream (its X-Seed)", param="seed")
    return event


def resumed_checkpoint(service: Service, event: EventId) -> ServedCheckpoint:
    """The checkpoint that a cut stream ran on, whatever is current now."""
    for checkpoint in service.engine.loaded:
        if short_checkpoint(checkpoint.id) == event.checkpoint:
            return checkpoint
    service.checkpoint()  # still loading is not the same as gone
    raise CheckpointGone("the stream's checkpoint is not loaded any more")


def make_plan(
    checkpoint: ServedCheckpoint,
    body: SamplingBody,
    params: SamplingParams,
    prompt: str,
    ids: tuple[int, ...],
    more: Mapping[str, object] = MappingProxyType({}),
) -> Plan:
    """A plan and its digest, which covers all that the answer depends on; ``more`` is what this route adds."""
    request = GenerationRequest(prompt=ids, params=params, stop=tuple(body.stop), timeout_s=body.timeout_s, checkpoint_id=checkpoint.id)
    resolved = {name: getattr(params, name) for name in SamplingParams.__slots__} | {"prompt": ids, "stop": body.stop, "echo": body.echo}
    return Plan(checkpoint, request, prompt, body.echo, request_digest({**resolved, **more}, checkpoint.fingerprint))


def sampling_params(
    service: Service,
    body: SamplingBody,
    checkpoint: ServedCheckpoint,
    max_tokens: int,
    bias: tuple[tuple[int, float], ...],
    num_logprobs: int | None,
    seed: int,
) -> SamplingParams:
    """The engine's parameters. Adding 0.0 makes -0.0 and 0.0 one request."""
    return SamplingParams(
        max_new_tokens=max_tokens,
        seed=seed,
        temperature=max(body.temperature, LEAST_FACTOR) if body.temperature else 0.0,
        top_k=0 if body.top_k >= checkpoint.vocab_size else max(body.top_k, 0),
        top_p=body.top_p,
        min_p=body.min_p + 0.0,
        repetition_penalty=max(body.repetition_penalty, LEAST_FACTOR),
        frequency_penalty=body.frequency_penalty + 0.0,
        presence_penalty=body.presence_penalty + 0.0,
        logit_bias=bias,
        num_logprobs=num_logprobs,
        stride=1 if (body.context or service.settings.context) == "sliding" else checkpoint.default_stride,
    )


def check_size(service: Service, name: str, max_tokens: int, num_logprobs: int | None, choices: int = 1) -> None:
    """Refuse an answer that is longer than the server's limit or than one answer may be; ``name`` is the field that says how long."""
    if max_tokens > (limit := service.settings.max_new_tokens):
        raise ApiError("invalid_request", f"{name}: at most {limit} on this server (given: {str(max_tokens)[:40]})", param=name)
    if num_logprobs is not None and (wanted := choices * max_tokens * (1 + num_logprobs)) > MAX_LOGPROBS:
        message = f"logprobs: tokens × log-probabilities would be {wanted} numbers, one answer has at most {MAX_LOGPROBS}"
        raise ApiError("invalid_request", message, param="logprobs")


def drawn_seed(seed: int | None) -> int:
    """The seed that was given, or a drawn one."""
    return secrets.randbits(53) if seed is None else seed


def encode(prompt: str, on_unknown: str, tokenizer: Tokenizer, field: str = "prompt") -> tuple[str, tuple[int, ...]]:
    """The prompt that the model sees, as text and as tokens. Raises ApiError naming ``field``, characters and offsets."""
    try:
        return prompt, tuple(tokenizer.encode(prompt))
    except UnknownCharacterError as error:
        if on_unknown == "error":
            raise ApiError("unknown_characters", f"{field}: {error}", param=field) from None
        known = "".join(c for c in prompt if c not in error.characters)
        return known, tuple(tokenizer.encode(known))


def encode_generated(body: GenerateBody, max_tokens: int, tokenizer: Tokenizer) -> tuple[str, tuple[int, ...]]:
    """What counts as generated already: its text, and its tokens. Raises ApiError."""
    if isinstance(body.generated, str):
        text, ids = encode(body.generated, body.on_unknown, tokenizer, "generated")
    else:
        ids = tuple(body.generated)
        if ids and max(ids) >= tokenizer.vocab_size:
            message = f"generated: {max(ids)} is no token of this model, whose ids are below {tokenizer.vocab_size}"
            raise ApiError("invalid_request", message, param="generated")
        text = "".join(piece for piece, _ in Detokenizer(tokenizer).feed(ids))
    if len(ids) > max_tokens:
        message = f"generated: has {len(ids)} tokens, and max_new_tokens, which counts them, is {max_tokens}"
        raise ApiError("invalid_request", message, param="generated")
    return text, ids


def bias_by_text(bias: dict[str, float], tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    """Token text → addend as sorted pairs of token id and addend; those of 0 change nothing."""
    for text in bias:
        if text not in tokenizer.ids:
            raise ApiError("invalid_request", f"logit_bias: {shown(text)!r} is no token of the model", param="logit_bias")
    return tuple(sorted((tokenizer.ids[text], value) for text, value in bias.items() if value))
