"""Every refusal has one code: the same in the body, in the stream's error event and in the metric.

    Exception
      ├─ ApiError      decided by the HTTP side: validation, keys, limits, routes
      └─ EngineError   decided by the engine (`service.engine.errors` draws that half)

Both become the same JSON here, in the native shape or, under /v1, in OpenAI's.
"""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.responses import Response

from service.engine.errors import EngineError

STATUS = {
    "invalid_http": 400,
    "invalid_json": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "checkpoint_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "resume_mismatch": 409,
    "promotion_in_progress": 409,
    "checkpoint_gone": 410,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "misdirected_request": 421,
    "invalid_request": 422,
    "unknown_field": 422,
    "unknown_characters": 422,
    "checkpoint_refused": 422,
    "queue_full": 429,
    "rate_limited": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "loading": 503,
    "shutting_down": 503,
    "engine_failed": 503,
    "queue_timeout": 504,
}
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CLIENT_GONE = 499
"""What the log says of a request whose client left before its answer; never on the wire."""


class ApiError(Exception):
    """A refusal. ``param`` names the field or header at fault."""

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS[code]
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.retryable = False
        self.headers: dict[str, str] = {}


class CutOffError(Exception):
    """An answer that is not whole ends without its last chunk, and its connection with it, so that no cache keeps it."""


class ClientGoneError(Exception):
    """The client closed its connection; there is nobody to answer."""


def as_api_error(error: Exception) -> ApiError:
    """Any exception as the refusal that a client sees; what we did not foresee says nothing about itself."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        refusal = ApiError(error.code, str(error), retry_after_s=error.retry_after_s)
        refusal.retryable = error.retryable
        return refusal
    return ApiError("internal_error", "an unexpected error, which the server has logged under this request's id")


def error_object(error: ApiError, request_id: str, *, openai: bool) -> dict[str, Any]:
    """The value of ``error`` in a body or an event."""
    if openai:
        kind = OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        return {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"code": error.code, "message": error.message, "param": error.param, "request_id": request_id}


def status_of(error: ApiError, *, openai: bool) -> int:
    """The status of an error. OpenAI says 400 of every body that it does not take; its clients have a class for that."""
    return 400 if openai and error.status == 422 else error.status


def error_response(error: ApiError, request_id: str, *, openai: bool) -> Response:
    """A refusal as a whole response."""
    headers = dict(error.headers)
    if error.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 431):
        headers["Connection"] = "close"
    body = json.dumps({"error": error_object(error, request_id, openai=openai)})
    return Response(body, status_of(error, openai=openai), headers, media_type="application/json")


def is_openai(path: str) -> bool:
    """Whether a path's errors have OpenAI's shape."""
    return path == "/v1" or path.startswith("/v1/")
