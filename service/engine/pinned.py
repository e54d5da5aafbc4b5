"""Copies of checkpoints that stay, however the directory that they came from is tidied up.

A worker that dies must be able to load its checkpoint again, and a training run deletes what `best` and `last` no longer point at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path


def link_or_copy(source: str, target: str) -> None:
    """A hard link costs nothing; across file systems it is a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def keep(source: Path, directory: Path, name: str) -> Path:
    """``directory/name`` with the files of ``source``, in one piece. Raises OSError."""
    kept = directory / name
    if not kept.exists():
        unfinished = directory / f".{name}.{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copytree(source, unfinished, copy_function=link_or_copy)
            unfinished.rename(kept)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return kept


def tidy(directory: Path, in_use: Collection[Path]) -> None:
    """Delete every kept checkpoint that is not in use."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path not in in_use:
            shutil.rmtree(path, ignore_errors=True)


def forget_the_dead(parent: Path) -> None:
    """Delete what processes that were killed have left; each had a directory named after its number."""
    for path in parent.iterdir() if parent.is_dir() else ():
        if not Path("/proc", path.name).exists():
            shutil.rmtree(path, ignore_errors=True)
