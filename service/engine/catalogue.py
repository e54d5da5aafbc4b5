"""Checkpoints on disk, by id. Reads manifests only, and neither numpy nor weights: the engine verifies what it loads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
BULKY = frozenset({"format", "files", "curve"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint directory."""

    id: str
    path: Path
    manifest: Mapping[str, Any]


def list_checkpoints(directory: Path | None) -> list[Entry]:
    """Every checkpoint right under a directory, sorted by name; what is no checkpoint is passed over."""
    if directory is None or not directory.is_dir():
        return []
    return [entry for path in sorted(directory.iterdir()) if (entry := read_entry(path)) is not None]


def read_entry(path: Path) -> Entry | None:
    """A directory's manifest and id, or None where there is none to be had."""
    try:
        with open(os.open(path / MANIFEST, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES)
        manifest = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    return Entry("sha256:" + hashlib.sha256(data).hexdigest(), path, manifest) if isinstance(manifest, dict) else None


def provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Where a model comes from: its manifest without the file hashes and the loss curve (which /info has)."""
    return {name: value for name, value in manifest.items() if name not in BULKY}
