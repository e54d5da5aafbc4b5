"""/v1: what OpenAI's clients call. The same sampler as everywhere: the same seed gives the same text as POST /generate."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Request
from starlette.responses import Response

from service.api.completions import Choices, CompletionEvents, find_model, plan_completions, whole_reply
from service.api.generate import response_headers
from service.api.generation import Generation, complete, events
from service.api.openapi import ALWAYS, EXAMPLE_CHUNKS, GENERATION, errors, events_too, examples
from service.api.parsing import make_router
from service.api.responses import CompletionReply, ModelCard, ModelList
from service.api.schemas import CompletionBody
from service.engine.catalogue import provenance
from service.engine.interface import ServedCheckpoint
from service.http.sse import EventStream
from service.request_state import request_state
from service.state import service_of

router = make_router("OpenAI-compatible", "/v1")
TEXT = {"prompt": "ROMEO:", "max_tokens": 16, "seed": 7}


@router.post(
    "/completions",
    response_model=CompletionReply,
    responses=events_too("the choices: events, or one JSON", EXAMPLE_CHUNKS) | errors(*GENERATION, "checkpoint_not_found", openai=True),
)
async def completions(
    request: Request, body: Annotated[CompletionBody, examples(text=TEXT, tokens={"prompt": [30, 27], "seed": 7})]
) -> Response:
    """OpenAI's completions: text or token ids in, one or more choices out, streamed or not."""
    service, state = service_of(request), request_state(request.scope)
    plans = plan_completions(service, body)
    streams = service.admit(state, *(plan.request for plan in plans))
    generations = [Generation(service, plan, stream, state) for plan, stream in zip(plans, streams, strict=True)]
    head = plans[0].checkpoint
    choices = Choices(head, body, f"cmpl-{state.request_id}", int(time.time()))
    headers = response_headers(plans[0])
    state.fields |= {"checkpoint": head.id, "choices": len(plans), "seed": plans[0].request.params.seed}
    if body.stream:
        chunks = events(generations, CompletionEvents(choices, generations))
        return EventStream(chunks, streams, headers=headers, keep_alive_s=service.settings.keep_alive_s)
    await complete(generations, request.receive)
    return Response(await whole_reply(choices, generations), headers=headers, media_type="application/json")


@router.get("/models", responses=errors(*ALWAYS, openai=True))
async def models(request: Request) -> ModelList:
    """What is loaded: the current checkpoint, and the one before it while streams use it."""
    return ModelList(data=[model_card(each) for each in service_of(request).engine.loaded])


@router.get("/models/{model}", responses=errors(*ALWAYS, "checkpoint_not_found", openai=True))
async def model(model: str, request: Request) -> ModelCard:
    """One loaded checkpoint and where it comes from."""
    return model_card(find_model(service_of(request), model))


def model_card(checkpoint: ServedCheckpoint) -> ModelCard:
    """OpenAI's fields of a model, and its provenance."""
    return ModelCard(
        id=checkpoint.id,
        created=0,
        fingerprint=checkpoint.fingerprint,
        block_size=checkpoint.block_size,
        provenance=provenance(checkpoint.manifest),
    )
