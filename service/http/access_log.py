"""The layers around the routes, each a small pure ASGI class (Starlette's ``BaseHTTPMiddleware`` defeats back-pressure).

    Linger → CORS → Observe → HeaderLimit → Auth → KeyLimits → BodyLimit → routes

What a layer refuses, it raises; ``Observe`` turns every exception into an answer, a metric and a line of the log.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.interface import EngineError
from service.errors import CLIENT_GONE, ApiError, as_api_error, error_response, is_openai
from service.state import Service
from service.telemetry.logs import Record, logger

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
DEFAULT_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
QUIET = ("/healthz", "/readyz", "/metrics")
"""Routes that machines poll; logged at debug level."""


class Observe:
    """Gives each request its id and its record, answers exceptions, counts refusals, and writes one line when all is sent."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(request_id(scope), time.monotonic())
        scope.setdefault("state", {})["record"] = record
        answer = Answer(send, record.request_id.encode())
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            await self.answer(error, scope, receive, answer, record)
        finally:
            self.finish(scope, record, answer)

    async def answer(self, error: Exception, scope: Scope, receive: Receive, answer: Answer, record: Record) -> None:
        """Say what went wrong, if the status line is not out yet."""
        if not isinstance(error, ApiError | EngineError):
            fields = {"request_id": record.request_id}
            logger.error("a request failed", exc_info=error, extra={"fields": fields})
        refusal = as_api_error(error)
        record.code = refusal.code
        if answer.status:
            raise error  # the connection is cut, so that nobody takes half an answer for a whole one
        await error_response(refusal, record.request_id, openai=is_openai(scope["path"]))(scope, receive, answer.send)

    def finish(self, scope: Scope, record: Record, answer: Answer) -> None:
        """Count, log and trace."""
        if record.code:
            self.service.metrics.refused.labels(record.code).inc()
        route = getattr(scope.get("route"), "path", "unmatched")
        level = logging.DEBUG if route in QUIET else logging.INFO
        tracing = None if route in QUIET else self.service.tracing
        if tracing is None and not logger.isEnabledFor(level):
            return
        fields = {
            "request_id": record.request_id,
            "method": scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other",
            "route": route,
            "status": answer.status or CLIENT_GONE,
            "ms": round((time.monotonic() - record.started) * 1e3, 3),
            "bytes": answer.size,
            "key": record.key,
            "code": record.code,
        } | record.fields
        logger.log(level, "request", extra={"fields": fields})
        if tracing is not None:
            tracing.request(scope, record, fields)


class Answer:
    """Watches what is sent, and adds the headers that every answer carries."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._headers = [(b"x-request-id", request_id), *SECURITY_HEADERS]
        self.status = 0
        self.size = 0

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self._headers]
            if not any(name == b"content-security-policy" for name, _ in headers):
                headers.append(DEFAULT_POLICY)
            message = {**message, "headers": headers}
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)


def request_id(scope: Scope) -> str:
    """The client's ``X-Request-Id`` if it sent one valid one, else a new one."""
    sent = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(sent) == 1 and REQUEST_ID.fullmatch(sent[0]):
        given: bytes = sent[0]
        return given.decode("ascii")
    return uuid.uuid4().hex


class HeaderLimit:
    """431 for a request line and headers that are too many or too large (`service.protocol` stops those that never end)."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.max_bytes, self.max_count = service.settings.max_header_bytes, service.settings.max_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            size = len(scope.get("raw_path", b"")) + len(scope["query_string"]) + sum(len(n) + len(v) + 4 for n, v in scope["headers"])
            if size > self.max_bytes:
                raise ApiError("headers_too_large", f"request line and headers have {size} bytes, at most {self.max_bytes} are taken")
            if len(scope["headers"]) > self.max_count:
                raise ApiError("headers_too_large", f"{len(scope['headers'])} header fields, at most {self.max_count} are taken")
        await self.app(scope, receive, send)


def http_refusal(error: HTTPException, scope: Scope) -> ApiError:
    """What the router says (404, 405) as one of our errors."""
    if error.status_code == 405:
        refusal = ApiError("method_not_allowed", "this route does not take this method")
        refusal.headers = {"Allow": ", ".join(allowed_methods(scope))}
        return refusal
    if error.status_code == 404:
        return ApiError("not_found", "there is no such route")
    return ApiError("invalid_request", str(error.detail))


def allowed_methods(scope: Scope) -> list[str]:
    """The methods of all routes that share a path; the router itself names only those of the first."""
    routes = [route for route in scope["app"].routes if route.matches(scope)[0] != Match.NONE]
    return sorted({method for route in routes for method in getattr(route, "methods", None) or ()})
