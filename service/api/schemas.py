"""The bodies that clients send, with docs/api.md's fields and ranges. Strict: nothing is converted, nothing unknown is accepted."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from model.params import MAX_SEED
from service.api.fields import (
    DEFAULT_MAX_TOKENS,
    MAX_TIMEOUT_S,
    MAX_TOP_LOGPROBS,
    UNKNOWN_FIELD,
    BiasMap,
    Context,
    Generated,
    Prompt,
    Stops,
    check_text,
)
from service.engine.interface import DEFAULT_TIMEOUT_S


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
    generated: Generated = Field("", description="what counts as generated already, as text or token ids: the answer goes on after it")
    return_tokens: bool = Field(False, description="send the ids of the text's tokens, which `generated` takes")
    max_new_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1, description="tokens to generate, up to the server's limit (see /info)")
    max_tokens: int | None = Field(None, ge=1, description="another name for max_new_tokens")
    logit_bias: BiasMap = Field({}, description="token text to a number added to its logit")
    logprobs: bool = Field(False, description="send each token's log-probability under the model's own distribution")
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS, description="and those of the most probable tokens; needs logprobs")
    checkpoint: str | None = Field(None, description="an id from /v1/models; null is the current one")
    receipt: bool = Field(False, description="add what anybody can check the text with (POST /verify)")
    stream: bool = Field(True, description="server-sent events, or one JSON, which is what most generated clients read")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        """Fields that exclude or need each other."""
        if self.max_tokens is not None and self.max_new_tokens != DEFAULT_MAX_TOKENS:
            raise ValueError("max_tokens is another name for max_new_tokens: give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class PromoteBody(Body):
    """The body of POST /admin/promote."""

    checkpoint: str = Field(description="an id from /admin/checkpoints", max_length=128)
