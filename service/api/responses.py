"""The JSON of texts, models and errors. Declared for the OpenAPI document; texts can be megabytes, and are written by hand."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue

from service.engine.interface import FinishReason
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
    """Milliseconds since the request arrived, and how often the model ran."""

    queue_ms: float
    ttft_ms: float
    total_ms: float
    passes: int = Field(description="passes of the model: fewer than tokens where guesses were right")


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
    tokens: list[int] = Field([], description="the ids of the text's tokens; only where asked for")
    logprobs: list[TokenLogprobs] = Field([], description="of each token; only where asked for")
    receipt: dict[str, Any] | None = Field(None, description="what anybody can check the text with; only where asked for")


class CompletionLogprobs(BaseModel):
    """OpenAI's four lists, one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for the first token of a prompt, before which nothing stands")
    top_logprobs: list[dict[str, float] | None]
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


class ChatTop(BaseModel):
    """One of the most probable tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(ChatTop):
    """A token of the answer, and the most probable ones in its place."""

    top_logprobs: list[ChatTop]


class ChatLogprobs(BaseModel):
    """Of each token."""

    content: list[ChatToken]
    refusal: None


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["length", "stop"]


class ChatPrompt(BaseModel):
    """How the messages became a prompt."""

    template: Literal["joined", "chat_template"] = Field(description="the checkpoint's own, or one message a line")


class ChatCompletion(BaseModel):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    folio: ChatPrompt
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """OpenAI's model, and where it comes from."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since 1970")
    owned_by: Literal["folio"] = "folio"
    checkpoint: str = Field(description="the id of what serves under this name")
    fingerprint: str
    block_size: int
    max_model_len: int = Field(description="vLLM's name of block_size; longer texts move the window")
    provenance: Provenance


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
