"""POST /verify: whether a text is what a receipt says, by generating it again with the text itself as the guess of every token."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError

from model.tokenizer.base import UnknownCharacterError
from model.version import ARITHMETIC_VERSION
from service.api.fields import MAX_TIMEOUT_S
from service.api.generation import admit, complete
from service.api.openapi import GENERATION, REQUEST_ID_HEADER, errors, examples
from service.api.parsing import make_router, off_loop
from service.api.plan import Plan, plan_generate
from service.api.receipt import first_difference, sha256_text, signature_error
from service.api.schemas import Body, GenerateBody
from service.errors import ApiError
from service.request_state import request_state
from service.state import Service, service_of

router = make_router("generation")
SHOWN = 16
"""Characters that a verdict shows of each text from where they differ."""
EXAMPLE = {
    "receipt": {
        "arithmetic": ARITHMETIC_VERSION,
        "checkpoint": "sha256:…",
        "fingerprint": "…",
        "request": {"prompt": "ROMEO:", "max_new_tokens": 20, "seed": 7},
        "text_sha256": "…",
        "tokens": 20,
    }
}


class VerifyBody(Body):
    """A receipt, and the text that it is to be held against."""

    receipt: dict[str, Any] = Field(description="as a reply had it")
    text: str | None = Field(None, max_length=1 << 22, description="the text; if it is left out, it is generated and its hash compared")


class Verdict(BaseModel):
    """What came of it."""

    valid: bool
    tokens: int = Field(description="tokens of the text that the request has")
    reason: str = Field("", description="what is wrong, in words")
    at: int | None = Field(None, description="the first character that differs")
    expected: str | None = Field(None, description="what stands there in the text that the request has")
    found: str | None = Field(None, description="what stands there in the text that was given")


@router.post(
    "/verify",
    response_model=Verdict,
    response_model_exclude_none=True,
    responses=errors(*GENERATION, "checkpoint_gone"),
    openapi_extra=REQUEST_ID_HEADER,
)
async def verify(request: Request, body: Annotated[VerifyBody, examples(receipt=EXAMPLE)]) -> Verdict:
    """Whether a text is the one that a receipt's request has: the arithmetic gives the same bytes on every machine."""
    service = service_of(request)
    plan = await off_loop(await request.body(), plan_verify, service, body)
    (generation,) = admit(service, request_state(request.scope), [plan])
    (completion,) = await complete([generation], request.receive)
    return judge(body, plan.echoed + completion.text, completion.completion_tokens)


def plan_verify(service: Service, body: VerifyBody) -> Plan:
    """What a receipt asks for. Raises ApiError and EngineError."""
    request, checkpoint = body.receipt.get("request"), body.receipt.get("checkpoint")
    if not isinstance(request, dict) or not isinstance(checkpoint, str) or not isinstance(body.receipt.get("text_sha256"), str):
        raise ApiError("invalid_request", "receipt: no receipt: it needs request, checkpoint and text_sha256", param="receipt")
    if body.receipt.get("arithmetic") != ARITHMETIC_VERSION:
        raise ApiError(
            "invalid_request", f"receipt.arithmetic: this server computes version {ARITHMETIC_VERSION}", param="receipt.arithmetic"
        )
    try:
        asked = GenerateBody.model_validate({**request, "checkpoint": checkpoint, "stream": False, "timeout_s": MAX_TIMEOUT_S})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, ("receipt", "request", *first["loc"])))
        raise ApiError("invalid_request", f"{where}: {first['msg']}", param=where) from None
    if asked.seed is None:
        raise ApiError("invalid_request", "receipt.request.seed: a receipt has its seed", param="receipt.request.seed")
    plan = plan_generate(service, asked, None)
    if body.receipt.get("fingerprint") != plan.checkpoint.fingerprint:
        message = "receipt.fingerprint: made under another window rule: start a server with the --stride of the one that made it"
        raise ApiError("invalid_request", message, param="receipt.fingerprint")
    return replace(plan, request=replace(plan.request, guesses=guesses_of(plan, body.text)))


def guesses_of(plan: Plan, text: str | None) -> tuple[int, ...]:
    """The tokens that a text may be made of. Whatever they are, they only make it faster."""
    if text is None or not text.startswith(plan.echoed):
        return ()
    try:
        return (*plan.request.generated, *plan.checkpoint.tokenizer.encode(text[len(plan.echoed) :]))
    except UnknownCharacterError:
        return ()


def judge(body: VerifyBody, expected: str, tokens: int) -> Verdict:
    """The verdict on a receipt and a text, given the text that its request has."""
    verdict = Verdict(valid=False, tokens=tokens)
    if wrong := signature_error(body.receipt):
        return verdict.model_copy(update={"reason": wrong})
    if body.text is not None and (at := first_difference(expected, body.text)) is not None:
        shown = {"at": at, "expected": expected[at : at + SHOWN], "found": body.text[at : at + SHOWN]}
        return verdict.model_copy(update={"reason": f"the text differs from character {at} on", **shown})
    if body.receipt["text_sha256"] != sha256_text(expected):
        return verdict.model_copy(update={"reason": "the receipt's hash is of another text than its request has"})
    if body.receipt.get("tokens") != tokens:
        return verdict.model_copy(update={"reason": f"the receipt says another number of tokens than {tokens}"})
    return Verdict(valid=True, tokens=tokens)
