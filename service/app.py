"""Puts the service together: ``create_app(settings, engine)``. No torch and no numpy are imported in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from service import auth, body, limits, middleware
from service.context import Service
from service.engine.interface import Engine
from service.observability import Metrics
from service.routes import admin, generate, health, openai, pages
from service.settings import Settings
from service.tracing import make_tracing

DESCRIPTION = "Text from a small Transformer, streamed. The same request and seed give the same bytes, always."


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The application. Its lifespan starts and closes the engine, which is made from the settings if none is given."""
    if engine is None:
        from service.engine.client import EngineClient

        engine = EngineClient(settings.engine_options())
    service = Service(settings, engine, Metrics(engine), make_tracing(settings))
    app = FastAPI(
        title="Folio",
        version=health.own_version(),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        middleware=layers(service),
        exception_handlers={HTTPException: raise_refusal},
        lifespan=lifespan,
    )
    app.state.service = service
    for module in (generate, openai, health, admin, pages):
        app.router.routes.extend(module.router.routes)  # flat, where include_router nests: 405 and the tests look at every route
    return app


def layers(service: Service) -> list[Middleware]:
    """Outermost first."""
    origins = service.settings.cors_origins
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED)]
    return [
        Middleware(body.Linger, service),
        *(cors if origins else []),
        Middleware(middleware.Observe, service),
        Middleware(middleware.HeaderLimit, service),
        Middleware(auth.Auth, service),
        Middleware(limits.KeyLimits, service),
        Middleware(body.BodyLimit, service),
    ]


EXPOSED = ["X-Request-Id", "X-Seed", "X-Checkpoint", "X-Fingerprint", "Retry-After"]


async def raise_refusal(request: Request, error: Exception) -> Response:
    """The router's own errors go the way of all others, to ``Observe``."""
    assert isinstance(error, HTTPException)
    raise middleware.http_refusal(error, request.scope) from None


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
