"""Requests that no route takes: the answer names what was asked for, and what there is instead."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from service.api.fields import shown
from service.errors import ApiError

CHAT, COMPLETIONS = "POST /v1/chat/completions", "POST /v1/completions"
HINTS = {
    "/v1/responses": f"use {CHAT}",
    "/v1/messages": f"use {CHAT}",
    "/v1/embeddings": f"the model only writes text; use {COMPLETIONS}",
    "/embeddings": f"the model only writes text; use {COMPLETIONS}",
    "/v1/rerank": f"the model only writes text; use {COMPLETIONS}",
    "/v1/files": "folio-generate --input reads files of requests",
    "/v1/batches": "folio-generate --input reads files of requests",
    "/completions": f"use {COMPLETIONS}; the clients' base URL ends in /v1",
    "/chat/completions": f"use {CHAT}; the clients' base URL ends in /v1",
    "/models": "use GET /v1/models; the clients' base URL ends in /v1",
    "/api/generate": "use POST /generate",
    "/api/chat": f"use {CHAT}",
    "/generate_stream": "use POST /generate, which streams unless told otherwise",
}
"""Doors of other servers, as their clients know them."""


def hint(path: str) -> str:
    """Where to go."""
    found = (text for door, text in HINTS.items() if path == door or path.startswith(door + "/"))
    return next(found, "GET /docs shows the routes")


def router_error(error: HTTPException, scope: Scope) -> ApiError:
    """What the router says (404, 405) as one of our errors."""
    if error.status_code == 405:
        refusal = ApiError("method_not_allowed", f"{shown(scope['path'])} does not take {shown(scope['method'])}")
        refusal.headers = {"Allow": ", ".join(allowed_methods(scope))}
        return refusal
    if error.status_code == 404:
        return ApiError("not_found", f"there is no {shown(scope['method'])} {shown(scope['path'])} here: {hint(scope['path'])}")
    return ApiError("invalid_request", str(error.detail))


def allowed_methods(scope: Scope) -> list[str]:
    """The methods of all routes that share a path; the router itself names only those of the first."""
    routes = [route for route in scope["app"].routes if route.matches(scope)[0] != Match.NONE]
    return sorted({method for route in routes for method in getattr(route, "methods", None) or ()})
