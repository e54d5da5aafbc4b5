"""Probes, metrics and /info. None of them waits for the engine or takes a lock: they read what the engine last said."""

from __future__ import annotations

import math
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from service.api import schemas
from service.api.openapi import HEALTHZ, INFO, METRICS, READYZ
from service.engine.interface import ServedCheckpoint
from service.request_state import request_state
from service.state import Service, service_of

router = APIRouter()
NO_STORE = {"Cache-Control": "no-store"}


@router.get("/healthz", **HEALTHZ)
async def healthz(request: Request) -> Response:
    """Whether the process should live: 503 only once the engine has been given up."""
    service = service_of(request)
    state = service.engine.status.state
    if state == "failed":
        return unavailable(request, "engine_failed")
    return JSONResponse({"status": "stopping" if service.draining else state}, headers=NO_STORE)


@router.get("/readyz", **READYZ)
async def readyz(request: Request) -> Response:
    """Whether new requests should come here."""
    service = service_of(request)
    if reason := service.not_ready:
        return unavailable(request, reason)
    return JSONResponse({"status": "ready"}, headers=NO_STORE)


REASONS = {
    "loading": "the model is being loaded",
    "shutting_down": "the server is shutting down",
    "engine_failed": "the engine has been given up; the log and /info say why",
    "engine_stalled": "the engine was not heard from for a while",
}
"""Probes need no key, so they say no more than this: the engine's own words may name paths."""


def unavailable(request: Request, reason: str) -> Response:
    """503 of a probe; not a refused request, so it counts for no metric."""
    code = "loading" if reason == "engine_stalled" else reason
    error = {"code": code, "message": REASONS[reason], "param": None, "request_id": request_state(request.scope).request_id}
    return JSONResponse({"error": error}, 503, NO_STORE | {"Retry-After": "1"})


@router.get("/metrics", **METRICS)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(service_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST, headers=NO_STORE)


@router.get("/info", **INFO)
async def info(request: Request) -> Response:
    """What this server is, what it serves, and what it takes."""
    service = service_of(request)
    engine = asdict(service.engine.status)
    engine = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in engine.items()}
    current = service.engine.current
    document = {
        "version": own_version(),
        "engine": engine,
        "model": describe(current, service) if current else None,
        "limits": limits(service),
    }
    return JSONResponse(document, headers=NO_STORE)


def describe(checkpoint: ServedCheckpoint, service: Service) -> dict[str, Any]:
    """A loaded checkpoint, its vocabulary and where it comes from."""
    stride = checkpoint.default_stride
    return {
        "checkpoint": checkpoint.id,
        "fingerprint": checkpoint.fingerprint,
        "config": dict(checkpoint.config),
        "num_parameters": checkpoint.num_parameters,
        "block_size": checkpoint.block_size,
        "vocab_size": checkpoint.vocab_size,
        "tokenizer": checkpoint.tokenizer.kind,
        "vocabulary": list(checkpoint.tokenizer.texts) if checkpoint.tokenizer.kind == "char" else None,
        "context": {"default": service.settings.context, "stride": {"anchored": stride, "sliding": 1}},
        "device": checkpoint.device,
        "dtype": checkpoint.dtype,
        "kernels": checkpoint.kernels,
        "cache_bytes": checkpoint.memory_bytes,
        "max_batch": checkpoint.max_batch,
        "manifest": {name: value for name, value in checkpoint.manifest.items() if name != "files"},
    }


def limits(service: Service) -> dict[str, Any]:
    """The bounds that requests are held to."""
    settings = service.settings
    return {
        "max_new_tokens": settings.max_new_tokens,
        "max_prompt_characters": schemas.MAX_PROMPT_CHARACTERS,
        "max_stops": schemas.MAX_STOPS,
        "max_stop_characters": schemas.MAX_STOP_CHARACTERS,
        "max_top_logprobs": schemas.MAX_TOP_LOGPROBS,
        "max_timeout_s": schemas.MAX_TIMEOUT_S,
        "max_choices_per_prompt": schemas.MAX_CHOICES_PER_PROMPT,
        "max_prompts": schemas.MAX_PROMPTS,
        "max_body_bytes": settings.max_body_bytes,
        "max_header_bytes": settings.max_header_bytes,
        "rate_limit": settings.rate_limit,
        "max_concurrent": settings.max_concurrent,
    }


def own_version() -> str:
    """The installed package's version; a checkout that is not installed has none."""
    try:
        return version("folio")
    except PackageNotFoundError:
        return "0+checkout"
