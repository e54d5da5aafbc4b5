"""The bodies that clients send, with API.md's fields and ranges. Strict: nothing is converted, nothing unknown is accepted."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from model.params import MAX_SEED

MAX_PROMPT_CHARACTERS = 65_536
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 128
MAX_TOP_LOGPROBS = 65
MAX_CHOICES_PER_PROMPT = 8
MAX_PROMPTS = 32
MAX_TIMEOUT_S = 86_400.0
DEFAULT_TIMEOUT_S = 600.0


DEFAULT_MAX_TOKENS = 256
UNKNOWN_FIELD = "unknown_field"


def shown(name: str) -> str:
    """A client's name for something, made harmless and short."""
    return name[:64].encode("unicode_escape").decode("ascii")


def check_text(text: str) -> None:
    """Raises ValueError for half of a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from None


def one_or_many(value: object) -> object:
    """A single stop string counts as a list of one."""
    return [value] if isinstance(value, str) else value


def check_bias(value: object) -> object:
    """Ends at the first bad entry: pydantic would build an error for each of a hundred thousand. Raises ValueError."""
    if isinstance(value, dict):
        check_text("".join(value))
        for name, addend in value.items():
            if type(addend) not in (int, float) or not -100 <= addend <= 100:
                raise ValueError(f"{shown(name)!r} needs a number from -100 to 100")
    return value


def check_token_ids(value: list[Any]) -> None:
    """Raises ValueError for what is no token id of any vocabulary; `plan` knows how many there are in this one."""
    if set(map(type, value)) != {int}:
        at = next(i for i, id in enumerate(value) if type(id) is not int)
        raise ValueError(f"a list of token ids holds integers only, and number {at} is none")
    if (least := min(value)) < 0:
        raise ValueError(f"token ids are 0 or greater, and {str(least)[:40]} is not")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"at most {MAX_PROMPT_CHARACTERS} tokens, and there are {len(value)}")


def check_one_prompt(value: object) -> None:
    """Text or token ids. Raises ValueError."""
    if isinstance(value, str):
        if len(value) > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"at most {MAX_PROMPT_CHARACTERS} characters, and there are {len(value)}")
        check_text(value)
    elif isinstance(value, list):
        if not value:
            raise ValueError("an empty list is no prompt: give text, or the ids of one token or more")
        check_token_ids(value)
    else:
        raise ValueError("a prompt is text or a list of token ids")


def check_prompts(value: object) -> object:
    """Says what is wrong with this prompt, where a union would say what it is not. Raises ValueError."""
    if not isinstance(value, list) or not value or type(value[0]) is int:
        check_one_prompt(value)
        return value
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts in one request, and there are {len(value)}")
    for at, each in enumerate(value):
        try:
            check_one_prompt(each)
        except ValueError as error:
            raise ValueError(f"number {at} of the list: {error}") from None
    return value


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    list[Stop],
    FailFast(),
    Field(max_length=MAX_STOPS),
    BeforeValidator(one_or_many, json_schema_input_type=Stop | list[Stop]),
]
BiasMap = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(check_bias)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
Several = Annotated[list[Prompt | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
Prompts = Annotated[
    str | list[int] | list[str | list[int]],
    PlainValidator(check_prompts, json_schema_input_type=Prompt | TokenIds | Several),
]
Context = Literal["anchored", "sliding"]


def defaults_in_words(schema: dict[str, Any]) -> None:
    """A body's defaults as part of its descriptions: clients that generators make would send them all, or ask for them all."""
    for field in schema["properties"].values():
        if (default := field.pop("default", None)) is not None:
            field["description"] += f" (default: {json.dumps(default)})"


class Body(BaseModel):
    """What the bodies have in common. Infinities and NaN are numbers to JSON readers in Python, not to us."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra=defaults_in_words,
    )

    @model_validator(mode="before")
    @classmethod
    def check_names(cls, data: object) -> object:
        """Ends at the first unknown field, before anything else is looked at."""
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields:
                check_text(name)
                raise PydanticCustomError(UNKNOWN_FIELD, "there is no such field", {"name": name})
        return data


class SamplingBody(Body):
    """The parameters that mean the same on every route. Neutral values are legal and equal omission, byte for byte."""

    temperature: float = Field(1.0, ge=0, le=5, description="0 is greedy; 1 is the plain multinomial over softmax")
    top_k: int = Field(0, ge=0, description="keep the k most probable tokens; 0 is off")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the most probable tokens until their sum reaches p")
    min_p: float = Field(0.0, ge=0, le=1, description="keep tokens of at least min_p times the largest probability")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="over prompt and output")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="over output, for each occurrence")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="over output, once")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="drawn if null, and returned either way")
    stop: Stops = Field([], description="strings that end the text; never part of it")
    echo: bool = Field(False, description="put the prompt in front of the text")
    on_unknown: Literal["error", "drop"] = Field("error", description="what to do with characters that the model does not know")
    context: Context | None = Field(None, description="how the window moves past the context length; null is the server's choice")
    timeout_s: float = Field(DEFAULT_TIMEOUT_S, gt=0, le=MAX_TIMEOUT_S, description="for the whole request; what there is by then is kept")


class GenerateBody(SamplingBody):
    """The body of POST /generate."""

    prompt: Prompt = Field(description='"" starts from a newline')
    max_new_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1, description="tokens to generate, up to the server's limit (see /info)")
    max_tokens: int | None = Field(None, ge=1, description="another name for max_new_tokens")
    logit_bias: BiasMap = Field({}, description="token text to a number added to its logit")
    logprobs: bool = Field(False, description="send each token's log-probability under the model's own distribution")
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS, description="and those of the most probable tokens; needs logprobs")
    checkpoint: str | None = Field(None, description="an id from /v1/models; null is the current one")
    stream: bool = Field(True, description="server-sent events, or one JSON, which is what most generated clients read")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        """Fields that exclude or need each other."""
        if self.max_tokens is not None and self.max_new_tokens != DEFAULT_MAX_TOKENS:
            raise ValueError("max_tokens is another name for max_new_tokens: give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class StreamOptions(Body):
    """OpenAI's options of a stream."""

    include_usage: bool = Field(False, description="send the token counts in a last chunk")


NULLABLE_SAMPLING = ("frequency_penalty", "logit_bias", "presence_penalty", "seed", "stop", "temperature", "top_p")
NULLABLE = {*NULLABLE_SAMPLING, "best_of", "echo", "logprobs", "max_tokens", "model", "n", "stream", "stream_options", "suffix", "user"}


def drop_nulls(data: object) -> object:
    """OpenAI's fields may be null there, which some clients send for what is not set."""
    return {key: value for key, value in data.items() if value is not None or key not in NULLABLE} if isinstance(data, dict) else data


def nulls_too(schema: dict[str, Any]) -> None:
    """What `drop_nulls` does, for the document."""
    defaults_in_words(schema)
    for name in NULLABLE & schema["properties"].keys():
        field = schema["properties"][name]
        kept = {key: field.pop(key) for key in ("title", "description") if key in field}
        branches = field.get("anyOf", [field])
        if {"type": "null"} not in branches:
            branches = [*branches, {"type": "null"}]
        schema["properties"][name] = kept | {"anyOf": branches}


class CompletionBody(SamplingBody):
    """The body of POST /v1/completions: OpenAI's fields, and those of ours that it lacks."""

    model_config = ConfigDict(json_schema_extra=nulls_too)

    model: str | None = Field(None, description="an id from /v1/models; the current one if not given")
    prompt: Prompts = Field(description="text, token ids, or a list of either")
    max_tokens: int = Field(16, ge=1, description="tokens to generate for each choice")
    n: int = Field(1, ge=1, le=MAX_CHOICES_PER_PROMPT, description="choices for each prompt; choice c uses seed + c")
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES_PER_PROMPT, description="only equal to n")
    logit_bias: BiasMap = Field({}, description="token id to a number added to its logit")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="log-probabilities of the chosen token and of this many of the best"
    )
    stream: bool = Field(False, description="server-sent events, or one JSON")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    user: str | None = Field(None, max_length=1024, description="accepted, and used for nothing")

    _nulls = model_validator(mode="before")(drop_nulls)

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        """Fields that exclude or need each other."""
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must equal n: choices are not ranked here")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo cannot go with logprobs: the log-probabilities of a prompt are not computed")
        return self


class PromoteBody(Body):
    """The body of POST /admin/promote."""

    checkpoint: str = Field(description="an id from /admin/checkpoints", max_length=128)
