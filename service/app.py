"""Puts the service together: ``create_app(settings, engine)``. No torch and no numpy are imported in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import address, admin, generate, openai, pages, probes, tokens, verify, weights
from service.api.unrouted import router_error
from service.engine.interface import Engine
from service.http import auth, size_limits
from service.http.access_log import AccessLog
from service.http.linger import Linger
from service.http.root_path import RootPath
from service.settings import Settings
from service.state import Service
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import make_tracing

DESCRIPTION = "Text from a small Transformer, streamed. The same request and seed give the same bytes, always."


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The application. Its lifespan starts and closes the engine, which is made from the settings if none is given."""
    if engine is None:
        from service.engine.engine import EngineClient

        engine = EngineClient(settings.engine_options())
    service = Service(settings, engine, Metrics(engine), make_tracing(settings))
    app = Application(
        title="Folio",
        version=probes.own_version(),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        middleware=layers(service),
        lifespan=lifespan,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
    )
    app.state.service = service
    for module in (address, generate, verify, openai, tokens, weights, probes, admin, pages):
        app.router.routes.extend(module.router.routes)  # flat: include_router would nest them
    app.router.routes.extend(head_routes(app.router.routes))
    return app


class Application(FastAPI):
    """FastAPI without the layers that would do what ours do: each of them costs every event of every stream."""

    def build_middleware_stack(self) -> ASGIApp:
        """Our layers around the routes; `AccessLog` answers every exception."""
        app: ASGIApp = RouterErrors(AsyncExitStackMiddleware(self.router))  # FastAPI's routes ask for the stack
        for layer in reversed(self.user_middleware):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        return app


def layers(service: Service) -> list[Middleware]:
    """Outermost first."""
    origins = service.settings.cors_origins
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED)]
    return [
        Middleware(Linger, service),
        *(cors if origins else []),
        Middleware(AccessLog, service),
        Middleware(RootPath, service),
        Middleware(size_limits.HeaderLimit, service),
        Middleware(auth.AllowedHosts, service),
        Middleware(auth.Auth, service),
        Middleware(size_limits.BodyLimit, service),
    ]


def head_routes(routes: Sequence[BaseRoute]) -> Iterator[APIRoute]:
    """HEAD wherever there is GET (RFC 9110 §9.1); the server sends no body for it."""
    taken = {route.path for route in routes if isinstance(route, APIRoute) and "HEAD" in (route.methods or ())}
    for route in routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()) and route.path not in taken:
            head = copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            yield head


EXPOSED = ["X-Request-Id", "X-Seed", "X-Checkpoint", "X-Fingerprint", "Retry-After", "ETag"]


class RouterErrors:
    """Makes the router's own errors ours, so that they go the way of all others, to ``AccessLog``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except HTTPException as error:
            raise router_error(error, scope) from None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """The engine lives as long as the application."""
    service: Service = app.state.service
    await service.engine.start()
    try:
        yield {}
    finally:
        service.draining = True
        await service.engine.close()
        if service.tracing is not None:
            await asyncio.to_thread(service.tracing.close)
