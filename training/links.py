"""``last``, ``best`` and ``plateau`` of a run: names that point at one of its checkpoints, and can be swapped in one piece.

A name is a symbolic link; where the file system has none (FAT, some network mounts, a zip archive), a file that holds the directory's name
does the same job. A run that was copied with its links followed has directories there, which become links again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from model.checkpoint.files import read_checkpoint
from model.checkpoint.manifest import CheckpointError, checkpoint_directory, read_manifest

OWN = re.compile(r"step-\d{6,}|\.step-\d{6,}\.writing-\d+")
"""Names of the directories that a run makes and deletes again."""
LINKS = ("last", "best", "plateau")


def step_name(step: int) -> str:
    """What the checkpoint after so many steps is called."""
    return f"step-{step:06d}"


def point(run: Path, link: str, name: str) -> None:
    """Let ``link`` mean ``name``: readers see the old target or the new one. Raises OSError."""
    temporary = run / f".{link}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name)
    except OSError:  # there are no symbolic links here
        temporary.write_text(name + "\n")
    temporary.replace(run / link)


def target(run: Path, link: str) -> str | None:
    """The name that ``link`` means, None where there is none (or a directory of its own)."""
    path = run / link
    if path.is_symlink():
        return os.readlink(path)
    directory = checkpoint_directory(path)
    return directory.name if directory != path else None


def locate(run: Path, link: str) -> Path | None:
    """The directory that ``link`` means, if it is there."""
    directory = checkpoint_directory(run / link)
    return directory.resolve() if directory.is_dir() else None


def find_last(run: Path) -> Path | None:
    """Where ``last`` lies; without it the newest checkpoint of the run that is whole."""
    if (last := locate(run, "last")) is not None:
        return last
    for path in sorted(own_directories(run), reverse=True):
        try:
            return read_checkpoint(path).path
        except CheckpointError:
            continue
    return None


def own_directories(run: Path) -> Iterator[Path]:
    """Finished checkpoints of a run."""
    if run.is_dir():
        yield from (path for path in run.iterdir() if OWN.fullmatch(path.name) and not path.name.startswith("."))


def restore_links(run: Path) -> None:
    """Turn directories where links should be into links: what a copy that follows links leaves. Raises OSError, CheckpointError."""
    for link in LINKS:
        path = run / link
        if path.is_dir() and not path.is_symlink():
            name = step_name(int(read_manifest(path).document["steps"]))
            if (run / name).exists():
                aside = run / f".{step_name(0)}.writing-{os.getpid()}"  # pruned with what killed saves leave
                path.rename(aside)
                shutil.rmtree(aside)
            else:
                path.rename(run / name)
            point(run, link, name)


def prune(run: Path) -> None:
    """Delete checkpoints that no link means, and what a killed save left behind."""
    kept = {target(run, link) for link in LINKS}
    for old in run.iterdir():
        if OWN.fullmatch(old.name) and old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)
