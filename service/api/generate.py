"""POST /generate: one text, as a stream of events or as one JSON."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from starlette.responses import Response

from service.api.events import NativeEvents, reply_json
from service.api.generation import admit, complete, events
from service.api.openapi import EXAMPLE_EVENTS, GENERATION, REQUEST_ID_HEADER, LastEventId, errors, events_too, examples
from service.api.parsing import make_router, off_loop
from service.api.plan import Plan, plan_generate
from service.api.responses import GenerateReply
from service.api.schemas import GenerateBody
from service.errors import ApiError
from service.http.sse import EventStream
from service.request_state import RequestState, request_state
from service.state import service_of

router = make_router("generation")
SSE, JSON = "text/event-stream", "application/json"
EXAMPLE = {"prompt": "ROMEO:", "max_new_tokens": 20, "temperature": 0.8, "top_k": 20, "seed": 7}


@router.post(
    "/generate",
    response_model=GenerateReply,
    responses=events_too("the text: events, or one JSON", EXAMPLE_EVENTS) | errors(*GENERATION, "resume_mismatch", "checkpoint_gone"),
    openapi_extra=REQUEST_ID_HEADER,
)
async def generate(
    request: Request,
    body: Annotated[GenerateBody, examples(stream=EXAMPLE, json={**EXAMPLE, "stream": False})],
    last_event_id: LastEventId = None,
) -> Response:
    """Generate text after a prompt. The same request and seed give the same bytes, streamed or not, beside any others."""
    plan = await off_loop(await request.body(), plan_generate, service_of(request), body, last_event_id)
    return await answer(request, plan, media_type(body, request.headers.get("accept", "")), {"Cache-Control": "no-store"})


async def answer(request: Request, plan: Plan, form: str, headers: dict[str, str], *, is_address: bool = False) -> Response:
    """Generate and answer, as events or as one JSON. Raises ApiError and EngineError.

    At an address (`service.api.address`) what is not the whole text is cut off, so that no cache keeps it, and the last event has an
    id that tells a browser not to come back.
    """
    service, state = service_of(request), request_state(request.scope)
    if len(request.headers.getlist("last-event-id")) > 1:
        raise ApiError("invalid_request", "Last-Event-ID: given twice", param="Last-Event-ID")
    (generation,) = admit(service, state, [plan])
    note(state, plan)
    headers |= response_headers(plan)
    if form == SSE:
        stream_of_events = events([generation], NativeEvents(generation, ends_for_good=is_address))
        keep_alive_s = service.settings.keep_alive_s
        is_whole = generation.is_whole if is_address else None
        return EventStream(stream_of_events, [generation], headers=headers, keep_alive_s=keep_alive_s, is_whole=is_whole)
    (completion,) = await complete([generation], request.receive)
    if not generation.is_whole():
        headers["Cache-Control"] = "no-store"
    return Response(await reply_json(plan, completion, state.request_id), headers=headers, media_type=JSON)


def media_type(body: GenerateBody, accept: str) -> str:
    """``stream`` decides; where it is not given, a client that accepts JSON and no events gets JSON."""
    if "stream" in body.model_fields_set:
        return SSE if body.stream else JSON
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return SSE if JSON not in types or SSE in types else JSON


def note(state: RequestState, plan: Plan) -> None:
    """Numbers and hashes for the log."""
    state.fields |= {
        "prompt_tokens": plan.num_prompt,
        "checkpoint": plan.checkpoint.id,
        "seed": plan.request.params.seed,
    }
    if plan.resume_from is not None:
        state.fields["resumed_at"] = plan.resume_from


def response_headers(plan: Plan) -> dict[str, str]:
    """What both forms of the answer carry."""
    return {
        "X-Seed": str(plan.request.params.seed),
        "X-Checkpoint": plan.checkpoint.id,
        "X-Fingerprint": plan.checkpoint.fingerprint,
        "Accept-Query": f'"{JSON}"',
    }
