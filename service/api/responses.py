"""The JSON that routes answer with. Declared for the OpenAPI document; texts, which can be megabytes, are written by hand in its shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.engine.interface import FinishReason, State
from service.errors import STATUS

Code = Annotated[str, Field(json_schema_extra={"enum": sorted(STATUS)})]
Provenance = Annotated[dict[str, JsonValue], Field(description="the manifest without its file hashes and its loss curve")]


class NativeErrorFields(BaseModel):
    """What went wrong."""

    code: Code
    message: str
    param: str | None = Field(description="the field or header at fault")
    request_id: str


class NativeError(BaseModel):
    """An error."""

    error: NativeErrorFields


class OpenAIErrorFields(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None = Field(description="the field or header at fault")
    code: Code


class OpenAIError(BaseModel):
    """An error under /v1."""

    error: OpenAIErrorFields


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(BaseModel):
    """Milliseconds since the request arrived."""

    queue_ms: float
    ttft_ms: float
    total_ms: float


class TopLogprob(BaseModel):
    """One of the most probable tokens."""

    id: int
    token: str
    logprob: float


class TokenLogprobs(TopLogprob):
    """A token of the text, and the most probable ones in its place."""

    top: list[TopLogprob]


class GenerateReply(BaseModel):
    """One text."""

    id: str
    checkpoint: str
    fingerprint: str
    text: str
    finish_reason: FinishReason
    seed: int
    usage: Usage
    text_sha256: str
    prompt_truncated: bool = Field(description="whether the model saw only the prompt's end")
    timings: Timings
    logprobs: list[TokenLogprobs] = Field([], description="of each token; only where asked for")


class CompletionLogprobs(BaseModel):
    """OpenAI's four lists, one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["length", "stop"]


class CompletionReply(BaseModel):
    """OpenAI's completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    """OpenAI's model, and where it comes from."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since 1970")
    owned_by: Literal["folio"] = "folio"
    fingerprint: str
    block_size: int
    provenance: Provenance


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class CatalogueEntry(BaseModel):
    """A checkpoint that is loaded or may be."""

    id: str
    name: str | None = Field(description="its directory's; null if it is loaded from elsewhere")
    current: bool
    loaded: bool
    provenance: Provenance


class Catalogue(BaseModel):
    """The checkpoints that may be promoted, and those that are loaded."""

    checkpoints: list[CatalogueEntry]


class Promoted(BaseModel):
    """The checkpoint that serves now."""

    checkpoint: str
    fingerprint: str


class Health(BaseModel):
    """How the engine fares."""

    status: State


class Ready(BaseModel):
    """New requests may come."""

    status: Literal["ready"] = "ready"


class EngineInfo(BaseModel):
    """How the engine fares, in numbers."""

    model_config = ConfigDict(from_attributes=True)

    state: State
    heartbeat_age_s: float | None = Field(description="seconds since the worker was last heard from; null before that")
    step_age_s: float | None = Field(description="seconds since the last step while work waits")
    running: int
    waiting: int
    max_batch: int
    steps: int
    restarts: int
    message: str
    batch_size: int = Field(description="rows that the last step computed")


class Strides(BaseModel):
    """How far each window rule moves a full window, in tokens."""

    anchored: int
    sliding: int


class ContextInfo(BaseModel):
    """How the window moves past the context length."""

    default: Literal["anchored", "sliding"]
    stride: Strides


class ModelInfo(BaseModel):
    """A loaded checkpoint, its vocabulary and where it comes from."""

    checkpoint: str
    fingerprint: str
    config: dict[str, JsonValue]
    num_parameters: int
    block_size: int
    vocab_size: int
    tokenizer: str
    vocabulary: list[str] | None = Field(description="the characters, if tokens are characters")
    context: ContextInfo
    device: str
    dtype: str
    kernels: str
    cache_bytes: int
    max_batch: int
    manifest: dict[str, JsonValue]


class Limits(BaseModel):
    """The bounds that requests are held to."""

    max_new_tokens: int
    max_prompt_characters: int
    max_stops: int
    max_stop_characters: int
    max_top_logprobs: int
    max_timeout_s: float
    max_choices_per_prompt: int
    max_prompts: int
    max_body_bytes: int
    max_header_bytes: int
    rate_limit: float | None
    max_concurrent: int | None


class Info(BaseModel):
    """What this server is, what it serves, and what it takes."""

    version: str
    engine: EngineInfo
    model: ModelInfo | None
    limits: Limits


class OpenAPIDocument(BaseModel):
    """This document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
