"""/admin: which checkpoint serves. The layers let only the admin key in; a checkpoint is named by its id, never by a path."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Depends, Request

from service.api.openapi import ADMIN, BODY_ERRORS, EXAMPLE_ID, PROMOTION, errors, examples, no_store
from service.api.parsing import make_router
from service.api.reports import Catalogue, CatalogueEntry, Promoted
from service.api.schemas import PromoteBody
from service.engine.catalogue import list_checkpoints, provenance
from service.engine.interface import ServedCheckpoint
from service.request_state import request_state
from service.state import service_of

router = make_router("admin", "/admin", dependencies=[Depends(no_store)])


@router.get("/checkpoints", responses=errors(*ADMIN))
async def checkpoints(request: Request) -> Catalogue:
    """The checkpoints that may be promoted, and those that are loaded."""
    service = service_of(request)
    loaded = {each.id: each.manifest for each in service.engine.loaded}
    entries = await asyncio.to_thread(list_checkpoints, service.settings.checkpoints)
    names = {entry.id: entry.path.name for entry in reversed(entries)}  # two names for one id (a link): the first
    current = service.engine.current
    manifests = loaded | {entry.id: entry.document for entry in entries}
    return Catalogue(
        checkpoints=[
            CatalogueEntry(
                id=id,
                name=names.get(id),
                current=current is not None and current.id == id,
                loaded=id in loaded,
                provenance=provenance(manifest),
            )
            for id, manifest in manifests.items()
        ]
    )


@router.post("/promote", responses=errors(*PROMOTION, *BODY_ERRORS))
async def promote(request: Request, body: Annotated[PromoteBody, examples(promote={"checkpoint": EXAMPLE_ID})]) -> Promoted:
    """Serve another checkpoint. Answers when it serves; running streams end on the one that they began with."""
    return promoted(request, await service_of(request).engine.promote(body.checkpoint))


@router.delete("/promote", responses=errors(*ADMIN, "checkpoint_not_found", "loading", "shutting_down", "engine_failed"))
async def cancel_promotion(request: Request) -> Promoted:
    """End the promotion that is loading a checkpoint, which is then refused with 422. The current one goes on serving."""
    engine = service_of(request).engine
    engine.cancel_promotion()
    return promoted(request, engine.find())


@router.post("/rollback", responses=errors(*PROMOTION))
async def rollback(request: Request) -> Promoted:
    """Serve the checkpoint that was current before the last promotion."""
    return promoted(request, await service_of(request).engine.rollback())


def promoted(request: Request, checkpoint: ServedCheckpoint) -> Promoted:
    """The checkpoint that serves now."""
    request_state(request.scope).fields["checkpoint"] = checkpoint.id
    return Promoted(checkpoint=checkpoint.id, fingerprint=checkpoint.fingerprint)
