"""What the OpenAPI document says beyond what FastAPI derives: every status that a route can send, with an example of each."""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from service.api.event_id import EVENT_ID
from service.api.responses import NativeError, OpenAIError
from service.errors import ApiError, error_object, status_of
from service.http.auth import ADMIN_PREFIX, is_open
from service.settings import Settings

Responses = dict[int | str, dict[str, Any]]
REF_TEMPLATE = "#/components/schemas/{model}"
ERRORS = (NativeError, OpenAIError)
"""In the document by hand: FastAPI would say of a page that its errors are HTML too."""

EXAMPLE_ID = "sha256:" + "3f" * 32
EXAMPLE_REQUEST = "4be1c7c2f0b74f3f9d7e1f6f8a1f0f55"
EXAMPLE_MESSAGES = {
    "invalid_json": "the body is not valid JSON: Expecting value at character 0",
    "unauthorized": "a valid key is needed: Authorization: Bearer KEY",
    "forbidden": "this route takes the admin key",
    "checkpoint_not_found": "no checkpoint of this id is loaded",
    "request_timeout": "the body did not arrive within 30 s",
    "resume_mismatch": "the body is not the one that the event's stream was made for",
    "promotion_in_progress": "another promotion is running",
    "checkpoint_gone": "the checkpoint that the request names is not loaded",
    "body_too_large": "the body has more than 1048576 bytes",
    "unsupported_media_type": "the body must come with one Content-Type: application/json",
    "invalid_request": "temperature: Input should be less than or equal to 5 (given: 7)",
    "unknown_field": "temprature: there is no such field",
    "unknown_characters": "prompt: the model does not know these characters: '\\xe9' at 3",
    "checkpoint_refused": "model.safetensors does not match its sha256",
    "queue_full": "the queue is full",
    "rate_limited": "this key may start 10 requests a second",
    "headers_too_large": "request line and headers have 20000 bytes, at most 16384 are taken",
    "internal_error": "an unexpected error, which the server has logged under this request's id",
    "loading": "the model is being loaded",
    "shutting_down": "the server is shutting down",
    "engine_failed": "the worker died too often",
    "queue_timeout": "no place in the batch became free in time",
}
EXAMPLE_PARAMS = {"unauthorized": "Authorization", "unsupported_media_type": "Content-Type", "resume_mismatch": "Last-Event-ID"}
EXAMPLE_PARAMS |= {"invalid_request": "temperature", "unknown_field": "temprature", "unknown_characters": "prompt"}

ALWAYS = ("unauthorized", "request_timeout", "body_too_large", "headers_too_large")
BODY_ERRORS = ("invalid_json", "unsupported_media_type", "invalid_request", "unknown_field")
GENERATION = (
    *ALWAYS,
    *BODY_ERRORS,
    "unknown_characters",
    "queue_full",
    "rate_limited",
    "loading",
    "shutting_down",
    "engine_failed",
    "queue_timeout",
)


EXAMPLE_EVENTS = (
    f'id: {EXAMPLE_REQUEST}.{"3f" * 6}.{"ab" * 8}.7\ndata: {{"index": 7, "text": "\\nO, sp"}}\n\n'
    ": keep-alive\n\n"
    'event: end\ndata: {"id": "…", "text": "\\nO, sp…", "finish_reason": "length", …}\n\n'
)
EXAMPLE_CHUNKS = 'data: {"choices": [{"index": 0, "text": "\\nO, sp", …}], …}\n\ndata: [DONE]\n\n'
EXAMPLE_CHAT_CHUNKS = 'data: {"choices": [{"index": 0, "delta": {"content": "\\nO, sp"}, …}], …}\n\ndata: [DONE]\n\n'
EVENT = {
    "description": "one event of the stream",
    "type": "object",
    "required": ["data"],
    "properties": {"id": {"type": "string"}, "event": {"enum": ["message", "end", "error"]}, "data": {"type": "string"}},
}


def errors(*codes: str, openai: bool = False) -> Responses:
    """The responses of these codes, grouped by status, with an example of each."""
    responses: Responses = {}
    for code in codes:
        error = ApiError(code, EXAMPLE_MESSAGES[code], param=EXAMPLE_PARAMS.get(code))
        schema = {"$ref": REF_TEMPLATE.format(model=OpenAIError.__name__ if openai else NativeError.__name__)}
        content = {"application/json": {"schema": schema, "examples": {}}}
        entry = responses.setdefault(status_of(error, openai=openai), {"description": "", "content": content})
        entry["description"] = f"{entry['description']}, {code}".lstrip(", ")
        entry["content"]["application/json"]["examples"][code] = {"value": {"error": error_object(error, EXAMPLE_REQUEST, openai=openai)}}
        if error.status in (429, 503):
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "seconds"}}
    return responses


def events_too(description: str, example: str) -> Responses:
    """The 200 of a route that answers with one JSON or with events."""
    return {200: {"description": description, "content": {"text/event-stream": {"schema": EVENT, "example": example}}}}


def examples(**bodies: dict[str, object]) -> Any:
    """A body's examples, by name."""
    return Body(openapi_examples={name: {"value": body} for name, body in bodies.items()})


LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="resume: the id of the last event received; the body must be the stream's, with its seed",
        json_schema_extra={"pattern": f"^{EVENT_ID.pattern}$"},
    ),
]
REQUEST_ID_HEADER: dict[str, Any] = {
    "parameters": [
        {
            "name": "X-Request-Id",
            "in": "header",
            "schema": {"type": "string"},
            "description": "up to 128 of [A-Za-z0-9._-]; drawn if absent",
        }
    ]
}
PROBE = ("request_timeout", "body_too_large", "headers_too_large")
ADMIN = (*ALWAYS, "forbidden")
PROMOTION = (
    *(*ADMIN, "promotion_in_progress", "checkpoint_not_found", "checkpoint_refused"),
    *("loading", "shutting_down", "engine_failed"),
)


async def no_store(response: Response) -> None:
    """A dependency of routes whose answers are of this moment."""
    response.headers["Cache-Control"] = "no-store"


def document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """FastAPI's document, with what only this server knows: the most tokens of a text, and whether it asks for keys."""
    whole = deepcopy(app.openapi())
    schemas = whole["components"]["schemas"]
    schemas |= models_json_schema([(model, "validation") for model in ERRORS], ref_template=REF_TEMPLATE)[1]["$defs"]
    for body, name in (("GenerateBody", "max_new_tokens"), ("GenerateBody", "max_tokens"), ("CompletionBody", "max_tokens")):
        field = schemas[body]["properties"][name]
        for branch in field.get("anyOf", [field]):
            if branch["type"] == "integer":
                branch["maximum"] = settings.max_new_tokens
    for generic in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no route sends
        schemas.pop(generic, None)
    whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            if operation["responses"].get("422", {}).get("description") == "Validation Error":
                del operation["responses"]["422"]
            if not is_open(method.upper(), path):
                needed = settings.client_keys() or path.startswith(ADMIN_PREFIX)
                operation["security"] = [{"key": []}] if needed else [{}, {"key": []}]
    return whole
