"""Copies of checkpoints that stay, however the directory that they came from is tidied up.

A worker that dies must be able to load its checkpoint again, and a training run deletes what `best` and `last` no longer point at.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

from model.checkpoint.manifest import ID_PREFIX, MANIFEST, SIGNATURE, Manifest


class PinnedCheckpoints:
    """A directory under ``parent`` that belongs to this object alone: ``open``, ``pin``, ``remove_unused``, ``close``. All of them block.

    Other services may use the same ``parent``, on other machines and in containers where the same process ids are in use. So an owner
    holds a lock on a file beside its directory while it lives, and only a directory whose lock is free is deleted by others.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.path = parent / uuid.uuid4().hex
        self.lock = -1

    def open(self) -> None:
        """Delete what services that were killed have left, then make a directory. Raises OSError. Idempotent."""
        if self.lock >= 0:
            return
        self.parent.mkdir(parents=True, exist_ok=True)
        for path in self.parent.glob("*.lock"):
            remove_if_abandoned(path)
        while (lock := create_lock(lock_of(self.path))) is None:
            self.path = self.parent / uuid.uuid4().hex
        self.lock = lock
        self.path.mkdir()

    def pin(self, manifest: Manifest) -> Path:
        """A directory with the files of a checkpoint, in one piece. Raises OSError and CheckpointError."""
        pinned = self.path / manifest.id.removeprefix(ID_PREFIX)
        if pinned.exists():
            return pinned
        unfinished = self.path / f".{pinned.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir()
            (unfinished / MANIFEST).write_bytes(manifest.data)
            for name in manifest.files:
                link_or_copy(manifest.path / name, unfinished / name)
            with contextlib.suppress(FileNotFoundError):
                link_or_copy(manifest.path / SIGNATURE, unfinished / SIGNATURE)
            unfinished.rename(pinned)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return pinned

    def remove_unused(self, in_use: Collection[Path]) -> None:
        """Delete every pinned checkpoint but these."""
        for path in self.path.iterdir():
            if path not in in_use:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Delete the directory and its lock. Idempotent."""
        if self.lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            lock_of(self.path).unlink(missing_ok=True)
            os.close(self.lock)
            self.lock = -1


def lock_of(directory: Path) -> Path:
    """The lock file of an owner's directory."""
    return directory.with_suffix(".lock")


def create_lock(path: Path) -> int | None:
    """The descriptor of a new, locked file; None if somebody who cleaned up deleted it before it was locked. Raises OSError."""
    lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: then nobody can find it free either
        fcntl.flock(lock, fcntl.LOCK_EX)
    if os.fstat(lock).st_nlink:
        return lock
    os.close(lock)
    return None


def remove_if_abandoned(lock: Path) -> None:
    """Delete a directory and its lock file, unless somebody holds the lock."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # its owner, or another service that cleans up, was faster
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)
    except OSError:
        pass  # it is in use
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs nothing; across file systems it is a copy. Raises OSError."""
    try:
        os.link(os.path.realpath(source), target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
