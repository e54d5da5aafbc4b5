"""/tokenize, /detokenize and /tokenizer_info, in vLLM's forms: what clients need that count or score tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from pydantic import BaseModel, FailFast, Field

from service.api.choices import find_model
from service.api.fields import Prompt, TokenIds
from service.api.openai_schemas import LenientBody
from service.api.openapi import ALWAYS, BODY_ERRORS, errors, examples
from service.api.parsing import make_router, off_loop
from service.api.plan import encode
from service.engine.interface import ServedCheckpoint
from service.errors import ApiError
from service.state import service_of

router = make_router("tokens")
WAITING = ("checkpoint_not_found", "loading", "shutting_down", "engine_failed")
SERVED = "a name or an id from /v1/models; the current one if not given"


class TokenizeBody(LenientBody):
    """The body of POST /tokenize."""

    model: str | None = Field(None, description=SERVED)
    prompt: Prompt = Field(description="text")
    add_special_tokens: bool = Field(True, description="there are none")
    return_token_strs: bool = Field(False, description="the tokens' texts too")


class DetokenizeBody(LenientBody):
    """The body of POST /detokenize."""

    model: str | None = Field(None, description=SERVED)
    tokens: Annotated[TokenIds, FailFast()] = Field(description="token ids")


class Tokens(BaseModel):
    """A text's tokens."""

    tokens: list[int]
    count: int
    max_model_len: int = Field(description="the context length; longer texts move the window")
    token_strs: list[str] | None = None


class Text(BaseModel):
    """Tokens' text."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The tokenizer of the checkpoint that serves."""

    tokenizer_class: str = Field(description="char, byte or bpe")
    vocab_size: int
    max_model_len: int
    bos_token: str = Field(description="what an empty prompt starts from")
    bos_token_id: int
    eos_token: None = Field(None, description="no token ends a text")
    chat_template: str | None


@router.post("/tokenize", responses=errors(*ALWAYS, *BODY_ERRORS, "unknown_characters", *WAITING))
async def tokenize(request: Request, body: Annotated[TokenizeBody, examples(text={"prompt": "ROMEO:"})]) -> Tokens:
    """The tokens of a text."""
    checkpoint = find_model(service_of(request), body.model)
    _, ids = await off_loop(await request.body(), encode, body.prompt, "error", checkpoint.tokenizer)
    texts = [checkpoint.tokenizer.texts[id] for id in ids] if body.return_token_strs else None
    return Tokens(tokens=list(ids), count=len(ids), max_model_len=checkpoint.block_size, token_strs=texts)


@router.post("/detokenize", responses=errors(*ALWAYS, *BODY_ERRORS, *WAITING))
async def detokenize(request: Request, body: Annotated[DetokenizeBody, examples(tokens={"tokens": [30, 27]})]) -> Text:
    """The text of tokens."""
    tokenizer = find_model(service_of(request), body.model).tokenizer
    if max(body.tokens) >= tokenizer.vocab_size:
        raise ApiError("invalid_request", f"tokens: token ids are below {tokenizer.vocab_size}", param="tokens")
    return Text(prompt=await off_loop(await request.body(), tokenizer.decode, body.tokens))


@router.get("/tokenizer_info", responses=errors(*ALWAYS, "loading", "shutting_down", "engine_failed"))
async def tokenizer_info(request: Request) -> TokenizerInfo:
    """What the tokenizer is."""
    return describe(service_of(request).checkpoint())


def describe(checkpoint: ServedCheckpoint) -> TokenizerInfo:
    """A checkpoint's tokenizer."""
    template, start = checkpoint.manifest.get("chat_template"), checkpoint.manifest.get("start", "\n")
    tokenizer = checkpoint.tokenizer
    first = tokenizer.first(start if isinstance(start, str) else "")
    return TokenizerInfo(
        tokenizer_class=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        max_model_len=checkpoint.block_size,
        bos_token=tokenizer.texts[first],
        bos_token_id=first,
        chat_template=template if isinstance(template, str) else None,
    )
