"""POST /generate: one text, as a stream of events or as one JSON."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from starlette.responses import Response

from service.api.events import NativeEvents, reply_json
from service.api.generation import Generation, complete, events
from service.api.openapi import EXAMPLE_EVENTS, GENERATION, REQUEST_ID_HEADER, LastEventId, errors, events_too, examples
from service.api.parsing import make_router
from service.api.plan import Plan, plan_generate
from service.api.responses import GenerateReply
from service.api.schemas import GenerateBody
from service.errors import ApiError
from service.http.sse import EventStream
from service.request_state import RequestState, request_state
from service.state import service_of

router = make_router("generation")
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
    service, state = service_of(request), request_state(request.scope)
    if len(request.headers.getlist("last-event-id")) > 1:
        raise ApiError("invalid_request", "Last-Event-ID: given twice", param="Last-Event-ID")
    plan = plan_generate(service, body, last_event_id)
    (stream,) = service.admit(plan.request)
    note(state, plan)
    generation = Generation(service, plan, stream, state)
    headers = response_headers(plan)
    if wants_stream(body, request.headers.get("accept", "")):
        stream_of_events = events([generation], NativeEvents(generation))
        return EventStream(stream_of_events, [stream], headers=headers, keep_alive_s=service.settings.keep_alive_s)
    (completion,) = await complete([generation], request.receive)
    return Response(await reply_json(plan, completion, state.request_id), headers=headers, media_type="application/json")


def wants_stream(body: GenerateBody, accept: str) -> bool:
    """``stream`` decides; where it is not given, a client that accepts JSON and no events gets JSON."""
    if "stream" in body.model_fields_set:
        return body.stream
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "application/json" not in types or "text/event-stream" in types


def note(state: RequestState, plan: Plan) -> None:
    """Numbers and hashes for the log."""
    state.fields |= {"prompt_tokens": len(plan.request.prompt), "checkpoint": plan.checkpoint.id, "seed": plan.request.params.seed}
    if plan.resume_from is not None:
        state.fields["resumed_at"] = plan.resume_from


def response_headers(plan: Plan) -> dict[str, str]:
    """What both forms of the answer carry."""
    return {
        "X-Seed": str(plan.request.params.seed),
        "X-Checkpoint": plan.checkpoint.id,
        "X-Fingerprint": plan.checkpoint.fingerprint,
        "Cache-Control": "no-store",
    }
