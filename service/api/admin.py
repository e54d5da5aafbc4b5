"""/admin: which checkpoint serves. The layers let only the admin key in; a checkpoint is named by its id, never by a path."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api.openapi import CATALOGUE, PROMOTE, ROLLBACK
from service.api.parsing import parse_body
from service.api.schemas import PromoteBody
from service.engine.catalogue import list_checkpoints, provenance
from service.engine.interface import ServedCheckpoint
from service.request_state import request_state
from service.state import service_of

router = APIRouter(prefix="/admin")
NO_STORE = {"Cache-Control": "no-store"}


@router.get("/checkpoints", **CATALOGUE)
async def checkpoints(request: Request) -> Response:
    """The checkpoints that may be promoted, and those that are loaded."""
    service = service_of(request)
    loaded = {each.id: each.manifest for each in service.engine.loaded}
    entries = await asyncio.to_thread(list_checkpoints, service.settings.checkpoints)
    names = {entry.id: entry.path.name for entry in reversed(entries)}  # two names for one id (a link): the first
    current = service.engine.current
    manifests = loaded | {entry.id: entry.document for entry in entries}
    rows = [
        {
            "id": id,
            "name": names.get(id),
            "current": current is not None and current.id == id,
            "loaded": id in loaded,
            "provenance": provenance(manifest),
        }
        for id, manifest in manifests.items()
    ]
    return JSONResponse({"checkpoints": rows}, headers=NO_STORE)


@router.post("/promote", **PROMOTE)
async def promote(request: Request) -> Response:
    """Serve another checkpoint. Answers when it serves; running streams end on the one that they began with."""
    body = parse_body(request.headers, await request.body(), PromoteBody)
    return promoted(request, await service_of(request).engine.promote(body.checkpoint))


@router.post("/rollback", **ROLLBACK)
async def rollback(request: Request) -> Response:
    """Serve the checkpoint that was current before the last promotion."""
    return promoted(request, await service_of(request).engine.rollback())


def promoted(request: Request, checkpoint: ServedCheckpoint) -> Response:
    """The answer of both."""
    request_state(request.scope).fields["checkpoint"] = checkpoint.id
    return JSONResponse({"checkpoint": checkpoint.id, "fingerprint": checkpoint.fingerprint}, headers=NO_STORE)
