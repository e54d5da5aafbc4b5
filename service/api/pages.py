"""What a browser shows: the playground, and the reference that is rendered from the OpenAPI document. Nothing comes from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from service.api.openapi import complete, document_page
from service.api.reference import STYLE_HASH, render
from service.errors import ApiError
from service.state import service_of

router = APIRouter()
PLAYGROUND = Path(__file__).parent.parent / "playground"
PLAYGROUND_SUFFIXES = (".html", ".css", ".js", ".svg", ".woff2", ".txt")
PLAYGROUND_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = f"default-src 'none'; style-src '{STYLE_HASH}'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"


PLAYGROUND_FILES = frozenset(path.name for path in PLAYGROUND.iterdir() if path.suffix in PLAYGROUND_SUFFIXES)
"""Names that may be asked for: what a client sends never becomes a path."""


def playground_file(name: str) -> Response:
    """A static file of the playground. Raises ApiError."""
    if name not in PLAYGROUND_FILES:
        raise ApiError("not_found", "there is no such file")
    return FileResponse(PLAYGROUND / name, headers={"Content-Security-Policy": PLAYGROUND_POLICY, "Cache-Control": "no-cache"})


@router.get("/", **document_page("text/html", "the playground"))
async def index() -> Response:
    """The playground: a page to try the model on."""
    return playground_file("index.html")


@router.get("/playground/{name}", include_in_schema=False)
async def playground(name: str) -> Response:
    """The files that the page is made of."""
    return playground_file(name)


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    """Browsers ask for it whatever a page says."""
    return playground_file("favicon.svg")


def document(request: Request) -> dict[str, Any]:
    """The OpenAPI document of this server."""
    return complete(request.app.openapi(), service_of(request).settings.max_new_tokens)


@router.get("/openapi.json", **document_page("application/json", "this interface as an OpenAPI document"))
async def openapi_json(request: Request) -> Response:
    """The whole interface, for machines."""
    return JSONResponse(document(request), headers={"Cache-Control": "no-cache"})


@router.get("/docs", **document_page("text/html", "this interface as a page"))
async def docs(request: Request) -> Response:
    """The whole interface, for people."""
    return HTMLResponse(render(document(request)), headers={"Content-Security-Policy": DOCS_POLICY, "Cache-Control": "no-cache"})
