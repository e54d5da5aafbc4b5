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

from service.api import admin, generate, openai, pages, probes
from service.engine.interface import Engine
from service.http import access_log, auth, rate_limit, size_limits
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
    app = FastAPI(
        title="Folio",
        version=probes.own_version(),
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
    for module in (generate, openai, probes, admin, pages):
        app.router.routes.extend(module.router.routes)  # flat, where include_router nests: 405 and the tests look at every route
    return app


def layers(service: Service) -> list[Middleware]:
    """Outermost first."""
    origins = service.settings.cors_origins
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED)]
    return [
        Middleware(size_limits.Linger, service),
        *(cors if origins else []),
        Middleware(access_log.Observe, service),
        Middleware(access_log.HeaderLimit, service),
        Middleware(auth.Auth, service),
        Middleware(rate_limit.KeyLimits, service),
        Middleware(size_limits.BodyLimit, service),
    ]


EXPOSED = ["X-Request-Id", "X-Seed", "X-Checkpoint", "X-Fingerprint", "Retry-After"]


async def raise_refusal(request: Request, error: Exception) -> Response:
    """The router's own errors go the way of all others, to ``Observe``."""
    assert isinstance(error, HTTPException)
    raise access_log.http_refusal(error, request.scope) from None


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
