"""Requests that no route takes: the answer names what was asked for, and what there is instead."""

from __future__ import annotations

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from service.api.fields import shown
from service.errors import ApiError

CHAT, COMPLETIONS = "POST /v1/chat/completions", "POST /v1/completions"
TEXT_ALONE = f"the model only writes text; use {COMPLETIONS}"
FILES = "folio-generate --input reads files of requests"
HINTS = {
    "/v1/responses": f"use {CHAT}",
    "/v1/messages": f"use {CHAT}",
    "/v1/embeddings": TEXT_ALONE,
    "/embeddings": TEXT_ALONE,
    "/v1/audio": TEXT_ALONE,
    "/v1/images": TEXT_ALONE,
    "/v1/moderations": TEXT_ALONE,
    "/v1/rerank": TEXT_ALONE,
    "/v1/score": f"{COMPLETIONS} with echo and logprobs gives a prompt's log-probabilities",
    "/v1/files": FILES,
    "/v1/batches": FILES,
    "/v1": "GET /v1/models says what is served; clients' base URL ends in /v1",
    "/completions": f"use {COMPLETIONS}; the clients' base URL ends in /v1",
    "/chat/completions": f"use {CHAT}; the clients' base URL ends in /v1",
    "/models": "use GET /v1/models; the clients' base URL ends in /v1",
    "/completion": "use POST /generate",
    "/api/generate": "use POST /generate",
    "/api/chat": f"use {CHAT}",
    "/api/tags": "use GET /v1/models",
    "/generate_stream": "use POST /generate, which streams unless told otherwise",
    "/version": "use GET /info",
}
"""Doors of other servers, as their clients know them."""


def hint(path: str, methods_of: Callable[[str], list[str]]) -> str:
    """Where to go."""
    bare = path.rstrip("/")
    if bare != path and methods_of(bare):
        return f"use {shown(bare)}, without the slash at its end"
    found = (text for door, text in HINTS.items() if bare == door or (bare.startswith(door + "/") and door != "/v1"))
    return next(found, "GET /docs shows the routes")


def router_error(error: HTTPException, scope: Scope) -> ApiError:
    """What the router says (404, 405) as one of our errors."""
    asked = f"there is no {shown(scope['method'])} {shown(scope['path'])} here"
    if error.status_code == 405:
        allowed = ", ".join(allowed_methods(scope))
        refusal = ApiError("method_not_allowed", f"{asked}: it takes {allowed}")
        refusal.headers = {"Allow": allowed}
        return refusal
    if error.status_code == 404:
        return ApiError("not_found", f"{asked}: {hint(scope['path'], lambda path: allowed_methods({**scope, 'path': path}))}")
    return ApiError("invalid_request", str(error.detail))


def allowed_methods(scope: Scope) -> list[str]:
    """The methods of all routes that share a path; the router itself names only those of the first."""
    routes = [route for route in scope["app"].routes if route.matches(scope)[0] != Match.NONE]
    return sorted({method for route in routes for method in getattr(route, "methods", None) or ()})
