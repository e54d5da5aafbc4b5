"""The JSON that the service says of itself: its health, what it is, its limits, and which checkpoints it could serve."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue

from service.api.responses import Provenance
from service.engine.interface import State


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
    decode_passes: int = Field(description="passes of the model in decoding, since the worker's start")
    guesses: int = Field(description="guesses of coming tokens that these passes have judged")
    right_guesses: int = Field(description="guesses that were what the model drew")


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
    tokens_per_minute: int | None


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
