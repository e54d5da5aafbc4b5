"""POST /generate: one text, as a stream of events or as one JSON."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.events import NativeEvents, reply_json
from service.api.generation import Generation, complete, events
from service.api.openapi import GENERATE
from service.api.parsing import parse_body
from service.api.plan import Plan, plan_generate
from service.api.schemas import GenerateBody
from service.errors import CLIENT_GONE, ApiError, ClientGoneError
from service.http.sse import EventStream
from service.request_state import RequestState, request_state
from service.state import service_of

router = APIRouter()


@router.post("/generate", **GENERATE)
async def generate(request: Request) -> Response:
    """Generate text after a prompt. The same request and seed give the same bytes, streamed or not, beside any others."""
    service, state = service_of(request), request_state(request.scope)
    body = parse_body(request.headers, await request.body(), GenerateBody)
    plan = plan_generate(service, body, last_event_id(request))
    (stream,) = service.admit(plan.request)
    note(state, plan)
    generation = Generation(service, plan, stream, state)
    headers = response_headers(plan)
    if wants_stream(body, request.headers.get("accept", "")):
        stream_of_events = events([generation], NativeEvents(generation))
        return EventStream(stream_of_events, [stream], headers=headers, keep_alive_s=service.settings.keep_alive_s)
    try:
        (completion,) = await complete([generation], request.receive)
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    return Response(await reply_json(plan, completion, state.request_id), headers=headers, media_type="application/json")


def last_event_id(request: Request) -> str | None:
    """The header of a client that resumes. Raises ApiError when there are two."""
    values = request.headers.getlist("last-event-id")
    if len(values) > 1:
        raise ApiError("invalid_request", "Last-Event-ID: given twice", param="Last-Event-ID")
    return values[0] if values else None


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
