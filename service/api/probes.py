"""Probes, metrics and /info. None of them waits for the engine or takes a lock: they read what the engine last said."""

from __future__ import annotations

import math
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from fastapi import Depends, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from service.api import fields
from service.api.openapi import ALWAYS, PROBE, errors, no_store
from service.api.parsing import make_router
from service.api.reports import ContextInfo, EngineInfo, Health, Info, Limits, ModelInfo, Ready, Strides
from service.engine.interface import ServedCheckpoint
from service.errors import ApiError, error_response
from service.request_state import request_state
from service.state import Service, service_of

router = make_router("operations", dependencies=[Depends(no_store)])
NO_STORE = {"Cache-Control": "no-store"}


@router.get("/health", response_model=Health, include_in_schema=False)
@router.get("/healthz", response_model=Health, responses=errors(*PROBE, "engine_failed"))
async def healthz(request: Request) -> Health | Response:
    """Whether the process should live: 503 only once the engine has been given up."""
    service = service_of(request)
    state = service.engine.status.state
    if state == "failed":
        return unavailable(request, "engine_failed")
    return Health(status="stopping" if service.draining else state)


@router.get("/readyz", response_model=Ready, responses=errors(*PROBE, "loading", "shutting_down", "engine_failed"))
async def readyz(request: Request) -> Ready | Response:
    """Whether new requests should come here."""
    if reason := service_of(request).not_ready:
        return unavailable(request, reason)
    return Ready()


REASONS = {
    "loading": "the model is being loaded",
    "shutting_down": "the server is shutting down",
    "engine_failed": "the engine has been given up; the log and /info say why",
    "engine_stalled": "the engine was not heard from for a while",
}
"""Probes need no key, so they say no more than this: the engine's own words may name paths."""


def unavailable(request: Request, reason: str) -> Response:
    """503 of a probe; not a refused request, so it counts for no metric."""
    error = ApiError("loading" if reason == "engine_stalled" else reason, REASONS[reason])
    response = error_response(error, request_state(request.scope).request_id, openai=False)
    response.headers.update(NO_STORE)
    return response


@router.get("/metrics", response_class=PlainTextResponse, responses=errors(*ALWAYS))
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(service_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST, headers=NO_STORE)


@router.get("/info", responses=errors(*ALWAYS))
async def info(request: Request) -> Info:
    """What this server is, what it serves, and what it takes."""
    service = service_of(request)
    status = asdict(service.engine.status)
    current = service.engine.current
    return Info(
        version=own_version(),
        engine=EngineInfo.model_validate(status | {name: None for name, value in status.items() if value == math.inf}),
        model=describe(current, service) if current else None,
        limits=limits(service),
    )


def describe(checkpoint: ServedCheckpoint, service: Service) -> ModelInfo:
    """A loaded checkpoint, its vocabulary and where it comes from."""
    strides = Strides(anchored=checkpoint.default_stride, sliding=1)
    return ModelInfo(
        checkpoint=checkpoint.id,
        fingerprint=checkpoint.fingerprint,
        config=dict(checkpoint.config),
        num_parameters=checkpoint.num_parameters,
        block_size=checkpoint.block_size,
        vocab_size=checkpoint.vocab_size,
        tokenizer=checkpoint.tokenizer.kind,
        vocabulary=list(checkpoint.tokenizer.texts) if checkpoint.tokenizer.kind == "char" else None,
        context=ContextInfo(default=service.settings.context, stride=strides),
        device=checkpoint.device,
        kernels=checkpoint.kernels,
        cache_bytes=checkpoint.memory_bytes,
        max_batch=checkpoint.max_batch,
        manifest={name: value for name, value in checkpoint.manifest.items() if name != "files"},
    )


def limits(service: Service) -> Limits:
    """The bounds that requests are held to."""
    settings = service.settings
    return Limits(
        max_new_tokens=settings.max_new_tokens,
        max_prompt_characters=fields.MAX_PROMPT_CHARACTERS,
        max_stops=fields.MAX_STOPS,
        max_stop_characters=fields.MAX_STOP_CHARACTERS,
        max_top_logprobs=fields.MAX_TOP_LOGPROBS,
        max_timeout_s=fields.MAX_TIMEOUT_S,
        max_choices_per_prompt=fields.MAX_CHOICES_PER_PROMPT,
        max_prompts=fields.MAX_PROMPTS,
        max_body_bytes=settings.max_body_bytes,
        max_header_bytes=settings.max_header_bytes,
        rate_limit=settings.rate_limit,
        max_concurrent=settings.max_concurrent,
        tokens_per_minute=settings.tokens_per_minute,
    )


def own_version() -> str:
    """The installed package's version; a checkout that is not installed has none."""
    try:
        return version("folio")
    except PackageNotFoundError:
        return "0+checkout"
