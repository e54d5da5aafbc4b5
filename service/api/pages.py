"""What a browser shows: the playground, and the reference that is rendered from the OpenAPI document. Nothing comes from elsewhere."""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, HTMLResponse, Response

from service.api import reference
from service.api.openapi import ALWAYS, document, errors
from service.api.parsing import make_router
from service.api.reports import OpenAPIDocument
from service.errors import ApiError
from service.state import Service

router = make_router("operations")
PLAYGROUND = Path(__file__).parent.parent / "playground"
PLAYGROUND_SUFFIXES = (".html", ".css", ".js", ".svg", ".woff2", ".txt")
PLAYGROUND_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


PLAYGROUND_FILES = frozenset(path.name for path in PLAYGROUND.iterdir() if path.suffix in PLAYGROUND_SUFFIXES)
"""Names that may be asked for: what a client sends never becomes a path."""


def playground_file(name: str) -> Response:
    """A static file of the playground. Raises ApiError."""
    if name not in PLAYGROUND_FILES:
        raise ApiError("not_found", "there is no such file")
    return FileResponse(PLAYGROUND / name, headers={"Content-Security-Policy": PLAYGROUND_POLICY, "Cache-Control": "no-cache"})


@router.get("/", response_class=HTMLResponse, responses=errors(*ALWAYS))
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


@lru_cache(maxsize=4)
def interface(app: FastAPI) -> tuple[bytes, str]:
    """The whole interface, for machines and for people. Making it takes long enough to be seen in a stream: once, in a thread."""
    service: Service = app.state.service
    whole = document(app, service.settings)
    return json.dumps(whole).encode(), reference.render(whole)


@router.get("/openapi.json", response_model=OpenAPIDocument, responses=errors(*ALWAYS))
async def openapi_json(request: Request) -> Response:
    """The whole interface, for machines."""
    written, _ = await asyncio.to_thread(interface, request.app)
    return Response(written, headers={"Cache-Control": "no-cache"}, media_type="application/json")


@router.get("/docs", response_class=HTMLResponse, responses=errors(*ALWAYS))
async def docs(request: Request) -> Response:
    """The whole interface, for people."""
    _, page = await asyncio.to_thread(interface, request.app)
    return HTMLResponse(page, headers={"Content-Security-Policy": reference.POLICY, "Cache-Control": "no-cache"})


@router.get("/docs/{name}", include_in_schema=False)
async def docs_file(name: str) -> Response:
    """The files that the reference page is made of."""
    if name not in reference.ASSETS:
        raise ApiError("not_found", "there is no such file")
    return FileResponse(reference.ASSETS[name], headers={"Cache-Control": "no-cache"})
