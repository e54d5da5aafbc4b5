"""GET /v1/models/{id}/weights: the file that a checkpoint's texts follow from, for who wants to check one elsewhere."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import FileResponse, Response

from service.api.address import matches
from service.api.choices import find_model
from service.api.openapi import ALWAYS, Responses, errors
from service.api.parsing import make_router
from service.engine.interface import ServedCheckpoint
from service.errors import ApiError
from service.settings import Settings
from service.state import service_of

router = make_router("OpenAI-compatible", "/v1")
WEIGHTS = "model.safetensors"
SAFETENSORS = "application/octet-stream"
FILE: Responses = {
    200: {"description": "a file of safetensors", "content": {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}}}
}
IMMUTABLE = "max-age=31536000, immutable"


@router.get(
    "/models/{model}/weights",
    response_class=FileResponse,
    responses=FILE | errors(*ALWAYS, "forbidden", "checkpoint_not_found", "loading", "shutting_down", "engine_failed", openai=True),
)
async def weights(model: str, request: Request) -> Response:
    """A loaded checkpoint's weights, if they are shared (``FOLIO_SHARE_WEIGHTS``). Whoever has them has the model."""
    service = service_of(request)
    if not are_shared(service.settings):
        raise ApiError("forbidden", "this server keeps its weights: FOLIO_SHARE_WEIGHTS=true would share them")
    checkpoint = find_model(service, model)
    tag = f'"{digest_of(checkpoint)}"'
    headers = {"ETag": tag, "Cache-Control": lifetime(service.settings, by_id=model == checkpoint.id)}
    if matches(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    if checkpoint.path is None or not (checkpoint.path / WEIGHTS).is_file():
        raise ApiError("checkpoint_not_found", "the weights are not on this server's disk any more", param="model")
    return FileResponse(checkpoint.path / WEIGHTS, media_type=SAFETENSORS, headers=headers)


def are_shared(settings: Settings) -> bool:
    """As the setting says; without one, where nobody but this machine's users can come, and no key says who they are."""
    if settings.share_weights is None:
        return settings.is_private
    return settings.share_weights


def digest_of(checkpoint: ServedCheckpoint) -> str:
    """The sha256 of the file, as its manifest has it and its worker has checked it."""
    digest: str = checkpoint.manifest["files"][WEIGHTS]
    return digest


def lifetime(settings: Settings, *, by_id: bool) -> str:
    """For ever if the id names the bytes; behind keys in no cache but the client's own."""
    return f"{'private' if settings.client_keys() else 'public'}, {IMMUTABLE}" if by_id else "no-cache"
