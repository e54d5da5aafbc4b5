"""Checkpoints as this process knows them: on disk, by id, and as a worker that has loaded one describes it.

Reads manifests only, neither numpy nor weights: the worker verifies what it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.manifest import CheckpointError, Manifest, read_manifest
from model.tokenizer.load import tokenizer_from_json
from service.engine.interface import ServedCheckpoint
from service.worker.messages import Ready

BULKY = frozenset({"format", "files", "curve"})


def list_checkpoints(directory: Path | None) -> list[Manifest]:
    """Every checkpoint right under a directory, sorted by name; what is none is passed over. Blocks: it reads files."""
    try:
        paths = sorted(directory.iterdir()) if directory is not None else []
    except OSError:
        return []
    return [found for path in paths if (found := find_manifest(path)) is not None]


def find_checkpoint(directory: Path | None, checkpoint_id: str) -> Manifest | None:
    """The checkpoint of this id right under a directory. Blocks: it reads files."""
    return next((each for each in list_checkpoints(directory) if each.id == checkpoint_id), None)


def find_manifest(path: Path) -> Manifest | None:
    """The manifest of a directory, None where there is none that can be used."""
    try:
        return read_manifest(path)
    except CheckpointError:
        return None


def provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Where a model comes from: its manifest without the file hashes and the loss curve (which /info has)."""
    return {name: value for name, value in manifest.items() if name not in BULKY}


def served_checkpoint(ready: Ready, path: str) -> ServedCheckpoint:
    """The Ready message as the routes know it."""
    return ServedCheckpoint(
        id=ready.id,
        fingerprint=ready.fingerprint,
        block_size=ready.config["block_size"],
        vocab_size=ready.config["vocab_size"],
        num_parameters=ready.num_parameters,
        tokenizer=tokenizer_from_json(ready.tokenizer),
        manifest=ready.manifest,
        created=ready.created,
        config=ready.config,
        default_stride=ready.stride,
        device=ready.device,
        kernels=ready.kernels,
        max_batch=ready.max_batch,
        memory_bytes=ready.memory_bytes,
        path=Path(path),
        note=ready.note,
    )
