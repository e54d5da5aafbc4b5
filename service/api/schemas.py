"""The bodies that clients send, with API.md's fields and ranges. Strict: nothing is converted, nothing unknown is accepted."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from model.params import MAX_SEED

MAX_PROMPT_CHARACTERS = 65_536
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 128
MAX_TOP_LOGPROBS = 65
MAX_CHOICES_PER_PROMPT = 8
MAX_PROMPTS = 32
MAX_TIMEOUT_S = 86_400.0
DEFAULT_TIMEOUT_S = 600.0


def one_or_many(value: object) -> object:
    """A single stop string counts as a list of one."""
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS), BeforeValidator(one_or_many, json_schema_input_type=Stop | list[Stop])]
Bias = Annotated[float, Field(ge=-100, le=100)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Context = Literal["anchored", "sliding"]


class Body(BaseModel):
    """What the bodies have in common. Infinities and NaN are numbers to JSON readers in Python, not to us."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


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
    max_new_tokens: int = Field(256, ge=1, description="tokens to generate, up to the server's limit (see /info)")
    max_tokens: int | None = Field(None, ge=1, description="another name for max_new_tokens")
    logit_bias: dict[str, Bias] = Field({}, description="token text to a number added to its logit")
    logprobs: bool = Field(False, description="send each token's log-probability under the model's own distribution")
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS, description="and those of the most probable tokens; needs logprobs")
    checkpoint: str | None = Field(None, description="an id from /v1/models; null is the current one")
    stream: bool = Field(True, description="server-sent events, or one JSON")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        """Fields that exclude or need each other."""
        if self.max_tokens is not None and "max_new_tokens" in self.model_fields_set:
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


TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]


class CompletionBody(SamplingBody):
    """The body of POST /v1/completions: OpenAI's fields, and those of ours that it lacks."""

    model: str | None = Field(None, description="an id from /v1/models; the current one if not given")
    prompt: Prompt | TokenIds | Annotated[list[Prompt | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)] = Field(
        description="text, token ids, or a list of either"
    )
    max_tokens: int = Field(16, ge=1, description="tokens to generate for each choice")
    n: int = Field(1, ge=1, le=MAX_CHOICES_PER_PROMPT, description="choices for each prompt; choice c uses seed + c")
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES_PER_PROMPT, description="only equal to n")
    logit_bias: dict[str, Bias] = Field({}, description="token id to a number added to its logit")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="log-probabilities of the chosen and so many of the best tokens"
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


def body_schema(body: type[Body]) -> dict[str, Any]:
    """The JSON schema of a body, for the OpenAPI document."""
    return body.model_json_schema(ref_template="#/components/schemas/{model}")
