"""The bodies under /v1: OpenAI's fields, those of ours that it lacks, and what its other servers' clients send. Lenient where OpenAI is."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, FailFast, Field, PlainValidator, WithJsonSchema, model_validator

from model.params import MAX_SEED
from service.api.fields import (
    DEFAULT_MAX_TOKENS,
    MAX_CHAT_TOP_LOGPROBS,
    MAX_CHOICES_PER_PROMPT,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
    BiasMap,
    Prompts,
    Stop,
    check_text,
    one_or_many,
)
from service.api.schemas import Body, SamplingBody, defaults_in_words

Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), AfterValidator(lambda seed: seed % (MAX_SEED + 1))]
"""What OpenAI takes, folded into our range; replies carry the folded one."""
LenientStops = Annotated[
    list[Stop],
    FailFast(),
    Field(max_length=MAX_STOPS),
    BeforeValidator(one_or_many, json_schema_input_type=Stop | list[Stop] | Literal[""]),
]
Count = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
NumLogprobs = Annotated[
    Count | None,
    BeforeValidator(lambda value: None if value is False else value, json_schema_input_type=Count | Literal[False] | None),
]


def refuse_true(value: bool) -> bool:
    """Raises ValueError."""
    if value:
        raise ValueError("only false is taken here")
    return value


OnlyFalse = Annotated[bool, AfterValidator(refuse_true), WithJsonSchema({"type": "boolean", "const": False})]
"""A literal would take 0 too, which equals it."""
NULLABLE = frozenset(
    {
        *("audio", "best_of", "echo", "frequency_penalty", "function_call", "functions", "include_usage", "logit_bias", "logprobs"),
        *("max_completion_tokens", "max_tokens", "metadata", "modalities", "model", "n", "name", "parallel_tool_calls", "prediction"),
        *("presence_penalty", "prompt_cache_key", "reasoning_effort", "refusal", "response_format", "safety_identifier", "seed"),
        *("service_tier", "stop", "store", "stream", "stream_options", "suffix", "temperature", "tool_calls", "tool_choice", "tools"),
        *("top_logprobs", "top_p", "truncate_prompt_tokens", "user", "verbosity", "web_search_options"),
    }
)
"""OpenAI's fields may be null, which some clients send for what is not set."""
INTEGERS = ("best_of", "logprobs", "max_completion_tokens", "max_tokens", "min_tokens", "n", "seed", "top_k", "top_logprobs")


def nulls_too(schema: dict[str, Any]) -> None:
    """A body's schema, with the fields that may be null."""
    defaults_in_words(schema)
    for name in NULLABLE & schema["properties"].keys():
        field = schema["properties"][name]
        kept = {key: field.pop(key) for key in ("title", "description") if key in field}
        branches = field.get("anyOf", [field])
        if {"type": "null"} not in branches:
            branches = [*branches, {"type": "null"}]
        schema["properties"][name] = kept | {"anyOf": branches}


class LenientBody(Body):
    """A body, or a part of one, as OpenAI's reference takes it."""

    model_config = ConfigDict(json_schema_extra=nulls_too)

    @model_validator(mode="before")
    @classmethod
    def normalize(cls, data: object) -> object:
        """Null is absent, 16.0 is an integer to JSON, and an empty stop is none."""
        if not isinstance(data, dict):
            return data
        data = {name: value for name, value in data.items() if value is not None or name not in NULLABLE}
        for name in INTEGERS:
            if isinstance(value := data.get(name), float) and value.is_integer():
                data[name] = int(value)
        if data.get("stop") == "":
            del data["stop"]
        return data


class StreamOptions(LenientBody):
    """OpenAI's options of a stream; without one they say nothing."""

    include_usage: bool = Field(False, description="send the token counts in a last chunk")
    continuous_usage_stats: bool = Field(False, description="vLLM's: send the token counts so far in every chunk")
    include_obfuscation: bool = Field(False, description="accepted, and used for nothing: no chunk is padded")


class OpenAIBody(LenientBody, SamplingBody):
    """What completions and chat have in common."""

    model_config = ConfigDict(json_schema_extra=nulls_too)  # again, since the last base's would be taken

    model: str | None = Field(None, description="a name or an id from /v1/models; the current one if not given")
    n: int = Field(1, ge=1, le=MAX_CHOICES_PER_PROMPT, description="choices for each prompt; choice c uses seed + c")
    seed: Seed | None = Field(None, description="folded modulo 2**53; drawn if not given, and returned either way")
    stop: LenientStops = Field([], description="strings that end the text; never part of it")
    top_k: int = Field(0, ge=-1, description="keep the k most probable tokens; 0 and -1 are off")
    logit_bias: BiasMap = Field({}, description="token id to a number added to its logit")
    stream: bool = Field(False, description="server-sent events, or one JSON")
    stream_options: StreamOptions | None = Field(None, description="says nothing without stream")
    user: str | None = Field(None, max_length=1024, description="accepted, and used for nothing")

    # What vLLM's clients send. There is no token that ends a text and no special one, so each does what it says.
    ignore_eos: bool = Field(False, description="vLLM's: no token ends a text here")
    min_tokens: int = Field(0, ge=0, description="vLLM's: only without stop, where every text has its full length")
    skip_special_tokens: bool = Field(True, description="vLLM's: there are none")
    spaces_between_special_tokens: bool = Field(True, description="vLLM's: there are none")
    add_special_tokens: bool = Field(True, description="vLLM's: there are none")
    stop_token_ids: list[int] = Field([], max_length=0, description="vLLM's: only empty")
    include_stop_str_in_output: OnlyFalse = Field(False, description="vLLM's: a stop is never part of the text")
    use_beam_search: OnlyFalse = Field(False, description="vLLM's: texts are sampled")
    length_penalty: float = Field(1.0, ge=1, le=1, description="vLLM's: there is no beam search")
    priority: int = Field(0, ge=0, le=0, description="vLLM's: all requests are equal")
    truncate_prompt_tokens: None = Field(None, description="vLLM's: the window moves over a long prompt instead")

    @model_validator(mode="after")
    def check_min_tokens(self) -> Self:
        """A stop that must not end the text yet is not offered."""
        if self.min_tokens and self.stop:
            raise ValueError("min_tokens does not go with stop: a text ends wherever its stop is")
        return self


class CompletionBody(OpenAIBody):
    """The body of POST /v1/completions."""

    prompt: Prompts = Field(description="text, token ids, or a list of either")
    max_tokens: int = Field(16, ge=0, description="tokens to generate for each choice; 0 with echo and logprobs scores the prompt")
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES_PER_PROMPT, description="only equal to n")
    logprobs: NumLogprobs = Field(None, description="log-probabilities of the chosen token and of this many of the best")
    suffix: Literal[""] | None = Field(None, description="only empty: text is written on, not filled in")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        """Fields that exclude or need each other."""
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must equal n: choices are not ranked here")
        return self


class TextPart(LenientBody):
    """A part of a message."""

    type: Literal["text"] = Field(description="only text is read here")
    text: str


def join_parts(value: object) -> str:
    """A message's text, from its parts. Raises ValueError for what is no text."""
    if value is None:
        return ""
    if isinstance(value, str):
        check_text(value)
        return value
    if not isinstance(value, list):
        raise ValueError("text or a list of text parts is needed")
    parts = []
    for at, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"part {at} is no text: only {{'type': 'text', 'text': …}} is read here")
        parts.append(part["text"])
    check_text("".join(parts))
    return "".join(parts)


class Message(LenientBody):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="who speaks; templates may look at it")
    content: Annotated[str, PlainValidator(join_parts, json_schema_input_type=str | list[TextPart] | None)] = Field(
        "", description="text, or a list of text parts, which are joined"
    )
    name: str | None = Field(None, max_length=1024, description="of who speaks; templates may look at it")


class TextFormat(LenientBody):
    """The one format of answers."""

    type: Literal["text"] = Field(description="only text is written here")


class ChatBody(OpenAIBody):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="what was said; the checkpoint's chat template makes a prompt of it, or it is joined, one message a line"
    )
    max_tokens: int | None = Field(None, ge=1, description="OpenAI's older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(
        None, ge=1, description=f"tokens to generate for each choice; {DEFAULT_MAX_TOKENS} if not given"
    )
    logprobs: bool = Field(False, description="log-probabilities of the chosen tokens")
    top_logprobs: int = Field(0, ge=0, le=MAX_CHAT_TOP_LOGPROBS, description="and of this many of the best; needs logprobs")
    response_format: TextFormat | None = Field(None, description="only text")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="there are no tools to choose")
    store: OnlyFalse | None = Field(None, description="nothing is stored")
    echo: OnlyFalse = Field(False, description="an answer never repeats the messages")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        """Fields that exclude or need each other."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens is another name for max_completion_tokens: give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def length(self) -> int:
        """Tokens to generate."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS
