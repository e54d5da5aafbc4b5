"""GET and QUERY /generate: a text has an address, so caches, links and the browser's own EventSource work with it.

Both mean what POST means, and since a text is a function of its request, its tag is known before a token is generated: whoever
has the text is told so (304) by a server whose worker is restarting, too. QUERY is RFC 10008; its body is POST's.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.responses import Response

from service.api.fields import shown
from service.api.generate import SSE, answer, media_type
from service.api.openapi import EXAMPLE_EVENTS, GENERATION, REQUEST_ID_HEADER, LastEventId, errors, events_too, examples
from service.api.parsing import make_router, off_loop
from service.api.plan import Plan, plan_generate
from service.api.responses import GenerateReply
from service.api.schemas import GenerateBody
from service.errors import ApiError
from service.settings import Settings
from service.state import service_of

router = make_router("generation")
YEAR_S = 365 * 24 * 3600
TAG = re.compile(r'(?:W/)?"([^"]*)"|\*')
RESUMED = frozenset({"last-event-id"})
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    204: {"description": "the end was received already: an EventSource does not come back after this"},
    304: {"description": "the text is the one that `If-None-Match` names"},
}


def properties() -> dict[str, dict[str, Any]]:
    """The JSON schemas of the body's fields."""
    found: dict[str, dict[str, Any]] = GenerateBody.model_json_schema()["properties"]
    return found


@cache
def kinds() -> dict[str, set[str]]:
    """The JSON types that each field takes."""
    return {name: {branch.get("type", "") for branch in field.get("anyOf", [field])} for name, field in properties().items()}


def query_parameters() -> list[dict[str, Any]]:
    """The fields as OpenAPI's parameters of a query."""
    needed = ("prompt", "seed")
    return [
        {"name": name, "in": "query", "required": name in needed, "schema": {k: v for k, v in field.items() if k != "title"}}
        if "object" not in kinds()[name]
        else {"name": name, "in": "query", "content": {"application/json": {"schema": {"type": "object"}}}}
        for name, field in properties().items()
    ]


def body_of(query: QueryParams) -> GenerateBody:
    """The body that a query stands for: text as it is, lists by repetition, all else as JSON. Raises ApiError, RequestValidationError."""
    values: dict[str, Any] = {}
    for name in dict.fromkeys(query.keys()):
        given, types = query.getlist(name), kinds().get(name, {"string"})
        if "array" in types:
            values[name] = given[0] if len(given) == 1 and "string" in types else given
        elif len(given) > 1:
            raise ApiError("invalid_request", f"{shown(name)} is given twice", param=shown(name))
        elif "string" in types:
            values[name] = given[0]
        else:
            values[name] = parse_value(name, given[0])
    if "seed" not in values:
        raise ApiError("invalid_request", "seed: an address names one text, so it needs the seed", param="seed")
    try:
        return GenerateBody.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("query", *each["loc"])} for each in error.errors()]) from None


def parse_value(name: str, text: str) -> Any:
    """A number, a truth value or an object. Raises ApiError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        wanted = " or ".join(sorted(kinds()[name]))
        raise ApiError("invalid_request", f"{name}: {shown(text)!r} is no {wanted}", param=name) from None


@router.get(
    "/generate",
    name="generate_get",
    response_model=GenerateReply,
    responses=events_too("the text: events, or one JSON", EXAMPLE_EVENTS)
    | NOT_MODIFIED
    | errors(*GENERATION, "resume_mismatch", "checkpoint_gone"),
    openapi_extra={"parameters": [*query_parameters(), *REQUEST_ID_HEADER["parameters"]]},
)
async def generate_get(request: Request, last_event_id: LastEventId = None) -> Response:
    """The text that an address names. A GET needs its seed; `EventSource` resumes by itself."""
    return await address(request, body_of(request.query_params), last_event_id)


@router.head("/generate", include_in_schema=False)
async def generate_head(request: Request, last_event_id: LastEventId = None) -> Response:
    """What GET would say about the text; nothing is generated."""
    return await address(request, body_of(request.query_params), last_event_id)


@router.api_route("/generate", methods=["QUERY"], include_in_schema=False)
async def generate_query(request: Request, body: Annotated[GenerateBody, examples()], last_event_id: LastEventId = None) -> Response:
    """POST's body, and GET's meaning."""
    return await address(request, body, last_event_id)


async def address(request: Request, body: GenerateBody, last_event_id: str | None) -> Response:
    """Answer with the text, or with the news that the client has it already. Raises ApiError and EngineError."""
    if request.query_params and request.method == "QUERY":
        raise ApiError("invalid_request", "a QUERY has its parameters in its body", param=shown(next(iter(request.query_params))))
    plan = await off_loop(await request.body(), plan_generate, service_of(request), body, last_event_id)
    if plan.ended:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    form = media_type(body, request.headers.get("accept", ""))
    headers = caching_headers(plan, body, form, service_of(request).settings)
    if request.scope["http_version"] == "1.0" and form == SSE:
        headers["Cache-Control"] = "no-store"  # without chunks nobody can see whether a text is whole
    if plan.resume_from is None and body.seed is not None and matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers=headers, media_type=form)
    return await answer(request, plan, form, headers, is_address=True)


def caching_headers(plan: Plan, body: GenerateBody, form: str, settings: Settings) -> dict[str, str]:
    """How long a text may be kept: for ever if the request names its checkpoint, else until it is asked for again."""
    if plan.resume_from is not None or body.seed is None:
        return {"Cache-Control": "no-store"}
    who = "private" if settings.client_keys() else "public"
    return {
        "ETag": etag(plan, form),
        "Cache-Control": f"{who}, max-age={YEAR_S}, immutable" if body.checkpoint else f"{who}, no-cache",
        "Vary": "Accept, Last-Event-ID, Authorization",
    }


def etag(plan: Plan, form: str) -> str:
    """A weak tag, since how a text is cut into events may differ, and ids and times do."""
    parts = [plan.digest, "sse" if form == SSE else "json", *(["receipt"] if plan.receipt else [])]
    return f'W/"{"-".join(parts)}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Whether a client's tags name this one, compared weakly (RFC 9110 §13.1.2)."""
    opaque = tag.removeprefix("W/").strip('"')
    return any(match[0] == "*" or match[1] == opaque for match in TAG.finditer(if_none_match))
