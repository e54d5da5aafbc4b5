"""What the OpenAPI document says beyond what FastAPI derives: bodies, every status a route can send, and an example of each."""

from __future__ import annotations

from typing import Any

from service.api.schemas import Body, CompletionBody, GenerateBody, PromoteBody, body_schema
from service.errors import STATUS, ApiError, error_object

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

NATIVE_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "param", "request_id"],
            "properties": {
                "code": {"type": "string", "enum": sorted(STATUS)},
                "message": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "request_id": {"type": "string"},
            },
        }
    },
}
OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "enum": sorted(STATUS)},
            },
        }
    },
}
EVENT = {
    "description": "one event of the stream",
    "type": "object",
    "required": ["data"],
    "properties": {"id": {"type": "string"}, "event": {"enum": ["message", "end", "error"]}, "data": {"type": "string"}},
}
ALWAYS = ("unauthorized", "request_timeout", "body_too_large", "headers_too_large")
BODY = (*ALWAYS, "invalid_json", "unsupported_media_type", "invalid_request", "unknown_field")
GENERATION = (*BODY, "unknown_characters", "queue_full", "rate_limited", "loading", "shutting_down", "engine_failed", "queue_timeout")


def refusals(*codes: str, openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """The responses of these codes, grouped by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        error = ApiError(code, EXAMPLE_MESSAGES[code], param=EXAMPLE_PARAMS.get(code))
        entry = responses.setdefault(
            STATUS[code],
            {"description": "", "content": {"application/json": {"schema": OPENAI_ERROR if openai else NATIVE_ERROR, "examples": {}}}},
        )
        entry["description"] = f"{entry['description']}, {code}".lstrip(", ")
        value = {"error": error_object(error, EXAMPLE_REQUEST, openai=openai)}
        entry["content"]["application/json"]["examples"][code] = {"value": value}
        if STATUS[code] in (429, 503):
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "seconds"}}
    return responses


def ok(description: str, example: object, events: str | None = None) -> dict[int | str, dict[str, Any]]:
    """The answer of a route that did what it was asked, as JSON and, if it streams, as events."""
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}, "example": example}}
    if events is not None:
        content["text/event-stream"] = {"schema": EVENT, "example": events}
    return {200: {"description": description, "content": content}}


def takes(body: type[Body], **examples: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that parses it itself."""
    named = {name: {"value": value} for name, value in examples.items()}
    schema = body_schema(body)
    schema.pop("$defs", None)
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": inlined(schema, body_schema(body)), "examples": named}},
        }
    }


def inlined(schema: Any, root: dict[str, Any]) -> Any:
    """A schema with its references replaced by what they refer to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return {**inlined(root["$defs"][schema["$ref"].rpartition("/")[2]], root), **rest}
        return {key: inlined(value, root) for key, value in schema.items()}
    return [inlined(value, root) for value in schema] if isinstance(schema, list) else schema


EXAMPLE_BODY = {"prompt": "ROMEO:", "max_new_tokens": 20, "temperature": 0.8, "top_k": 20, "seed": 7}
EXAMPLE_REPLY = {
    "id": EXAMPLE_REQUEST,
    "checkpoint": EXAMPLE_ID,
    "fingerprint": "9c" * 16,
    "text": "\nO, speak again, brig",
    "finish_reason": "length",
    "seed": 7,
    "usage": {"prompt_tokens": 6, "completion_tokens": 20, "total_tokens": 26},
    "text_sha256": "5d" * 32,
    "prompt_truncated": False,
    "timings": {"queue_ms": 0.1, "ttft_ms": 2.4, "total_ms": 9.8},
}
EXAMPLE_EVENTS = (
    f'id: {EXAMPLE_REQUEST}.{"3f" * 6}.{"ab" * 8}.7\ndata: {{"index": 7, "text": "\\nO, sp"}}\n\n'
    ": keep-alive\n\n"
    'event: end\ndata: {"id": "…", "text": "\\nO, sp…", "finish_reason": "length", …}\n\n'
)
GENERATE_HEADERS: list[dict[str, Any]] = [
    {
        "name": "Last-Event-ID",
        "in": "header",
        "schema": {"type": "string"},
        "description": "resume: the id of the last event received; the body must be the stream's, with its seed",
    },
    {"name": "X-Request-Id", "in": "header", "schema": {"type": "string"}, "description": "up to 128 of [A-Za-z0-9._-]; drawn if absent"},
]
GENERATE: dict[str, Any] = {
    "tags": ["generation"],
    "responses": ok("the text: events, or one JSON", EXAMPLE_REPLY, EXAMPLE_EVENTS)
    | refusals(*GENERATION, "resume_mismatch", "checkpoint_gone"),
    "openapi_extra": takes(GenerateBody, stream=EXAMPLE_BODY, json={**EXAMPLE_BODY, "stream": False}) | {"parameters": GENERATE_HEADERS},
}
EXAMPLE_TEXT = {"prompt": "ROMEO:", "max_tokens": 16, "seed": 7}
EXAMPLE_COMPLETION = {
    "id": f"cmpl-{EXAMPLE_REQUEST}",
    "object": "text_completion",
    "created": 1767225600,
    "model": EXAMPLE_ID,
    "system_fingerprint": "9c" * 16,
    "choices": [{"index": 0, "text": "\nO, speak again, ", "logprobs": None, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 6, "completion_tokens": 16, "total_tokens": 22},
}
EXAMPLE_CHUNKS = 'data: {"choices": [{"index": 0, "text": "\\nO, sp", …}], …}\n\ndata: [DONE]\n\n'
COMPLETIONS: dict[str, Any] = {
    "tags": ["OpenAI-compatible"],
    "responses": ok("the choices: events, or one JSON", EXAMPLE_COMPLETION, EXAMPLE_CHUNKS)
    | refusals(*GENERATION, "checkpoint_not_found", openai=True),
    "openapi_extra": takes(CompletionBody, text=EXAMPLE_TEXT, tokens={"prompt": [30, 27], "seed": 7}),
}
EXAMPLE_MODEL = {
    "id": EXAMPLE_ID,
    "object": "model",
    "created": 1767225600,
    "owned_by": "folio",
    "provenance": {"seed": 1337, "val_loss": 1.48},
}
MODELS: dict[str, Any] = {
    "tags": ["OpenAI-compatible"],
    "responses": ok("what is loaded", {"object": "list", "data": [EXAMPLE_MODEL]}) | refusals(*ALWAYS, openai=True),
}
MODEL: dict[str, Any] = {
    "tags": ["OpenAI-compatible"],
    "responses": ok("one loaded checkpoint", EXAMPLE_MODEL) | refusals(*ALWAYS, "checkpoint_not_found", openai=True),
}
ADMIN = (*ALWAYS, "forbidden")
EXAMPLE_ENTRY = {"id": EXAMPLE_ID, "name": "step-005000", "current": False, "loaded": False, "provenance": {"val_loss": 1.47}}
CATALOGUE: dict[str, Any] = {
    "tags": ["admin"],
    "responses": ok("what may be promoted", {"checkpoints": [EXAMPLE_ENTRY]}) | refusals(*ADMIN),
}
PROMOTION = (*ADMIN, "promotion_in_progress", "checkpoint_not_found", "checkpoint_refused", "loading", "shutting_down", "engine_failed")
PROMOTE: dict[str, Any] = {
    "tags": ["admin"],
    "responses": ok("it serves", {"checkpoint": EXAMPLE_ID})
    | refusals(*PROMOTION, "invalid_json", "unsupported_media_type", "invalid_request", "unknown_field"),
    "openapi_extra": takes(PromoteBody, promote={"checkpoint": EXAMPLE_ID}),
}
ROLLBACK: dict[str, Any] = {"tags": ["admin"], "responses": ok("it serves", {"checkpoint": EXAMPLE_ID}) | refusals(*PROMOTION)}
PROBE_CODES = ("request_timeout", "body_too_large", "headers_too_large")
HEALTHZ: dict[str, Any] = {
    "tags": ["operations"],
    "responses": ok("loading, running or being restarted", {"status": "running"}) | refusals(*PROBE_CODES, "engine_failed"),
}
READYZ: dict[str, Any] = {
    "tags": ["operations"],
    "responses": ok("new requests are served", {"status": "ready"}) | refusals(*PROBE_CODES, "loading", "shutting_down", "engine_failed"),
}
EXAMPLE_INFO = {"version": "0.1.0", "engine": {"state": "running", "running": 3, "waiting": 0, "max_batch": 64}}
INFO: dict[str, Any] = {"tags": ["operations"], "responses": ok("limits, model and engine", EXAMPLE_INFO) | refusals(*ALWAYS)}
METRICS: dict[str, Any] = {
    "tags": ["operations"],
    "responses": {
        200: {"description": "Prometheus' text format", "content": {"text/plain": {"example": "folio_num_requests_running 3.0\n"}}},
        **refusals(*ALWAYS),
    },
}


def document_page(media_type: str, description: str) -> dict[str, Any]:
    """A page or document that is the same for everybody."""
    return {"tags": ["operations"], "responses": {200: {"description": description, "content": {media_type: {}}}, **refusals(*ALWAYS)}}


def complete(document: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """FastAPI's document with what only this server knows: its own limit on a text's length."""
    for path, names in (("/generate", ("max_new_tokens", "max_tokens")), ("/v1/completions", ("max_tokens",))):
        properties = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for name in names:
            for branch in properties[name].get("anyOf", [properties[name]]):
                if branch["type"] == "integer":
                    branch["maximum"] = max_new_tokens
    return document
