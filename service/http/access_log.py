"""Gives a request its id, turns every exception into an answer, and writes one line of the log when all is sent.

    Linger → CORS → AccessLog → RootPath → HeaderLimit → AllowedHosts → Auth → BodyLimit → routes

Each layer is a small pure ASGI class: Starlette's ``BaseHTTPMiddleware`` defeats back-pressure. What a layer refuses, it raises.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.errors import EngineError
from service.errors import CLIENT_GONE, ApiError, CutOffError, as_api_error, error_response, is_openai
from service.request_state import RequestState
from service.state import Service
from service.telemetry.logs import logger

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
DEFAULT_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
LOGGED_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "QUERY"})
QUIET = frozenset({"/health", "/healthz", "/readyz", "/metrics"})
"""Routes that machines poll; logged at debug level."""


class AccessLog:
    """Answers exceptions, counts refusals, logs and traces what was answered."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = RequestState(request_id(scope), time.monotonic())
        scope.setdefault("state", {})["request"] = state
        answer = Answer(send, state.request_id.encode())
        try:
            await self.app(scope, receive, answer.send)
        except CutOffError:
            raise  # said already, in the body
        except Exception as error:
            await self.answer(error, scope, receive, answer, state)
        finally:
            self.service.key_limits.end(state)
            self.finish(scope, state, answer)

    async def answer(self, error: Exception, scope: Scope, receive: Receive, answer: Answer, state: RequestState) -> None:
        """Say what went wrong, if the status line is not out yet."""
        if not isinstance(error, ApiError | EngineError):
            fields = {"request_id": state.request_id}
            logger.error("a request failed", exc_info=error, extra={"fields": fields})
        refusal = as_api_error(error)
        state.code = refusal.code
        if answer.status:
            raise error  # the connection is cut, so that nobody takes half an answer for a whole one
        response = error_response(refusal, state.request_id, openai=is_openai(scope["path"]))
        await response(scope, receive, answer.send)

    def finish(self, scope: Scope, state: RequestState, answer: Answer) -> None:
        """Count, log and trace."""
        if state.code:
            self.service.metrics.refused.labels(state.code).inc()
        route = getattr(scope.get("route"), "path", "unmatched")
        level = logging.DEBUG if route in QUIET else logging.INFO
        tracing = None if route in QUIET else self.service.tracing
        if tracing is None and not logger.isEnabledFor(level):
            return
        fields = {
            "request_id": state.request_id,
            "method": scope["method"] if scope["method"] in LOGGED_METHODS else "other",
            "route": route,
            "status": answer.status or CLIENT_GONE,
            "ms": round((time.monotonic() - state.started) * 1e3, 3),
            "bytes": answer.size,
            "key": state.key,
            "code": state.code,
        } | state.fields
        logger.log(level, "request", extra={"fields": fields})
        if tracing is not None:
            tracing.request(scope, state, fields)


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
