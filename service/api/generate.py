"""POST /generate: one text, as a stream of events or as one JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.events import Events, all_logprobs_json, reply_json, sha256_text
from service.api.openapi import GENERATE
from service.api.parsing import parse_body
from service.api.plan import Plan, plan_generate
from service.api.schemas import GenerateBody
from service.engine.interface import Chunk, Completion, EngineStopping, TextStream
from service.errors import CLIENT_GONE, ApiError, ClientGoneError, error_object
from service.http.sse import Emit, EventStream, unless_gone
from service.request_state import RequestState, request_state
from service.state import Service, service_of
from service.telemetry.metrics import Meter, Where

router = APIRouter()


@router.post("/generate", **GENERATE)
async def generate(request: Request) -> Response:
    """Generate text after a prompt. The same request and seed give the same bytes, streamed or not, beside any others."""
    service, state = service_of(request), request_state(request.scope)
    body = parse_body(request.headers, await request.body(), GenerateBody)
    plan = plan_generate(service, body, last_event_id(request))
    (stream,) = service.admit(plan.request)
    note(state, plan)
    if wants_stream(body, request.headers.get("accept", "")):
        return NativeStream(service, plan, stream, state).response()
    return await whole(service, plan, stream, state, request)


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


async def consume(stream: TextStream, meter: Meter, each: Callable[[Chunk], Awaitable[None]] | None, state: RequestState) -> Completion:
    """Read a stream to its end, metered; ``each`` gets every chunk."""
    try:
        async for chunk in stream:
            meter.chunk(chunk)
            if each is not None:
                await each(chunk)
    except (asyncio.CancelledError, EngineStopping) as error:
        where: Where = "shutdown" if isinstance(error, EngineStopping) else meter.where
        stream.cancel(where)
        meter.cancelled(where)
        state.fields |= {"cancelled": where, "completion_tokens": meter.index}
        raise
    completion = stream.completion
    meter.finished(completion)
    state.fields |= {
        "finish_reason": completion.finish_reason,
        "completion_tokens": completion.completion_tokens,
        "text_sha256": sha256_text(completion.text),
        "queue_ms": round(completion.queue_s * 1e3, 3),
        "ttft_ms": round(completion.ttft_s * 1e3, 3),
    }
    return completion


async def whole(service: Service, plan: Plan, stream: TextStream, state: RequestState, request: Request) -> Response:
    """The text as one JSON. It is read from the same stream, and ends like it when the client leaves."""
    meter = Meter(service.metrics, state.started, len(plan.request.prompt))
    async with stream:
        try:
            completion = await unless_gone(request.receive, consume(stream, meter, None, state))
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
    reply = await reply_json(plan, completion, state.request_id)
    return Response(reply, headers=response_headers(plan), media_type="application/json")


class NativeStream:
    """One text as a stream of events."""

    def __init__(self, service: Service, plan: Plan, stream: TextStream, state: RequestState) -> None:
        self.service, self.plan, self.stream, self.state = service, plan, stream, state
        self.events = Events(plan, state.request_id)
        self.meter = Meter(service.metrics, state.started, len(plan.request.prompt), plan.resume_from or 0)

    def response(self) -> EventStream:
        """What the route returns."""
        keep_alive_s = self.service.settings.keep_alive_s
        headers = response_headers(self.plan)
        return EventStream([self.stream], self.produce, self.fail, self.state, headers=headers, keep_alive_s=keep_alive_s)

    async def produce(self, emit: Emit) -> bytes:
        """All events but the last, which is returned."""
        if self.plan.echoed and self.plan.resume_from is None:
            await emit(self.events.text(Chunk(0, self.plan.echoed)))
        tokenizer = self.plan.checkpoint.tokenizer

        async def each(chunk: Chunk) -> None:
            logprobs = await all_logprobs_json(chunk.logprobs, tokenizer) if chunk.logprobs else ""
            await emit(self.events.text(chunk, logprobs))

        completion = await consume(self.stream, self.meter, each, self.state)
        return self.events.end(await reply_json(self.plan, completion, self.state.request_id))

    def fail(self, error: ApiError) -> bytes:
        """The last event of a stream that went wrong."""
        return self.events.error(error_object(error, self.state.request_id, openai=False), self.meter.index, error.retryable)
