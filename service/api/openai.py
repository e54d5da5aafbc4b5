"""/v1: what OpenAI's clients call. The same sampler as everywhere: the same seed gives the same text as POST /generate."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api.completions import Choices, CompletionEvents, plan_completions, whole_reply
from service.api.generate import response_headers
from service.api.generation import Generation, complete, events
from service.api.openapi import COMPLETIONS, MODEL, MODELS
from service.api.parsing import parse_body
from service.api.schemas import CompletionBody
from service.engine.catalogue import provenance
from service.engine.interface import ServedCheckpoint
from service.errors import CLIENT_GONE, ApiError, ClientGoneError
from service.http.sse import EventStream
from service.request_state import request_state
from service.state import Service, service_of

router = APIRouter(prefix="/v1")


@router.post("/completions", **COMPLETIONS)
async def completions(request: Request) -> Response:
    """OpenAI's completions: text or token ids in, one or more choices out, streamed or not."""
    service, state = service_of(request), request_state(request.scope)
    body = parse_body(request.headers, await request.body(), CompletionBody)
    plans = plan_completions(service, body)
    streams = service.admit(*(plan.request for plan in plans))
    generations = [Generation(service, plan, stream, state) for plan, stream in zip(plans, streams, strict=True)]
    head = plans[0].checkpoint
    choices = Choices(head, body, f"cmpl-{state.request_id}", int(time.time()))
    headers = response_headers(plans[0])
    state.fields |= {"checkpoint": head.id, "choices": len(plans), "seed": plans[0].request.params.seed}
    if body.stream:
        chunks = events(generations, CompletionEvents(choices, generations))
        return EventStream(chunks, streams, headers=headers, keep_alive_s=service.settings.keep_alive_s)
    try:
        await complete(generations, request.receive)
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    return Response(await whole_reply(choices, generations), headers=headers, media_type="application/json")


@router.get("/models", **MODELS)
async def models(request: Request) -> Response:
    """What is loaded: the current checkpoint, and the one before it while streams use it."""
    return JSONResponse({"object": "list", "data": [describe(each) for each in service_of(request).engine.loaded]})


@router.get("/models/{model}", **MODEL)
async def model(model: str, request: Request) -> Response:
    """One loaded checkpoint and where it comes from."""
    return JSONResponse(describe(loaded(service_of(request), model)))


def loaded(service: Service, model: str) -> ServedCheckpoint:
    """A loaded checkpoint by its id. Raises ApiError."""
    for checkpoint in service.engine.loaded:
        if checkpoint.id == model:
            return checkpoint
    raise ApiError("checkpoint_not_found", "no model of this id is loaded: see /v1/models", param="model")


def describe(checkpoint: ServedCheckpoint) -> dict[str, Any]:
    """OpenAI's fields of a model, and its provenance."""
    return {
        "id": checkpoint.id,
        "object": "model",
        "created": 0,
        "owned_by": "folio",
        "fingerprint": checkpoint.fingerprint,
        "block_size": checkpoint.block_size,
        "provenance": provenance(checkpoint.manifest),
    }
