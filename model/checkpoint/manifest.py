"""The manifest: it names a checkpoint, and through sha256 every byte of it. The one reader of it, and of any JSON in a checkpoint.

No numpy here: the API process reads manifests too. A checkpoint is input like any other, so everything is read with bounds: regular
files only, a size, a depth, and only values that can be written as JSON and as msgpack again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MAX_JSON_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_NAME = 255
"""Bytes of a file's name."""
MIN_INT, MAX_INT = -(2**63), 2**64 - 1
"""The integers of msgpack."""
MAX_DIGITS = 20
ID_PREFIX = "sha256:"


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or used; the message is one line and names the file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint directory as its manifest describes it. None of the other files has been looked at."""

    path: Path
    """The checkpoint's directory."""
    id: str
    """``sha256:`` and the 64 hex digits of ``data``'s hash."""
    data: bytes
    """The file as it is: what a signature covers."""
    document: dict[str, Any]

    @property
    def file(self) -> Path:
        """Where it was read from."""
        return self.path / MANIFEST

    @property
    def files(self) -> dict[str, str]:
        """Name → sha256 in hex of every other file, the names without any directory. Raises CheckpointError."""
        listed = self.document.get("files")
        if not isinstance(listed, dict) or not all(isinstance(each, str) for each in listed.values()):
            raise CheckpointError(f"{self.file} must list the sha256 of every file under 'files'")
        for name in listed:
            if Path(name).name != name or name in ("", ".", "..", MANIFEST, SIGNATURE):
                raise CheckpointError(f"{self.file} lists {name!r}, which is not a plain file name")
        return listed

    @property
    def start(self) -> str:
        """The text whose first token an empty prompt starts from."""
        return str(self.document.get("start", "\n"))


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint directory. Raises CheckpointError."""
    path = checkpoint_directory(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory: a checkpoint is a directory with a {MANIFEST}")
    data = read_file(path / MANIFEST, MAX_MANIFEST_BYTES)
    document = parse_json(path / MANIFEST, data)
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path / MANIFEST} has format {document.get('format')!r}, this version reads format {FORMAT}")
    if not isinstance(document.get("start", ""), str):
        raise CheckpointError(f"{path / MANIFEST}: start must be a string")
    return Manifest(path, ID_PREFIX + hashlib.sha256(data).hexdigest(), data, document)


def checkpoint_directory(path: Path) -> Path:
    """``path``, or the directory beside it that a small file of that name holds the name of: a link, where there are no links."""
    try:
        if path.is_file() and path.stat().st_size <= MAX_NAME:
            name = path.read_text(encoding="utf-8").strip()
            if name not in ("", ".", "..") and Path(name).name == name and (path.parent / name).is_dir():
                return path.parent / name
    except (OSError, ValueError):
        pass
    return path


def read_file(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file. Raises CheckpointError naming it: missing, not a file (a FIFO would block), too large."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            if limit is not None and status.st_size > limit:
                raise CheckpointError(f"{path} has {status.st_size} bytes, more than the {limit} allowed")
            return file.read() if limit is None else file.read(limit)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is not a regular file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """A JSON object of values that JSON and msgpack can hold. Raises CheckpointError naming file and field."""
    try:
        value = json.loads(data.decode(), parse_int=parse_int)
    except ValueError:
        raise CheckpointError(f"{path} is not valid JSON") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested more than {MAX_DEPTH} levels deep") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    check_values(path, value)
    return value


def parse_int(digits: str) -> float:
    """An integer; one that is far too long (for Python's converter too) becomes infinite, which `check_values` refuses by name."""
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def check_values(path: Path, document: dict[str, Any]) -> None:
    """Raises CheckpointError naming the field that holds NaN, a number out of range, half a character, or too many levels."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while todo:
        place, value = todo.pop()
        if isinstance(value, dict | list):
            if len(place) >= MAX_DEPTH:
                raise CheckpointError(f"{path}: {named(place)} is nested more than {MAX_DEPTH} levels deep")
            items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [((*place, str(key)), each) for key, each in items]
        if place and (problem := problem_with(value) or problem_with(place[-1])):
            raise CheckpointError(f"{path}: {named(place)} {problem}")


def problem_with(value: object) -> str:
    """Why a value cannot be served; empty if it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if isinstance(value, int) and not MIN_INT <= value <= MAX_INT:
        return "is beyond 64 bits"
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        return "holds half of a surrogate pair, which is no character"
    return ""


def named(place: tuple[str, ...]) -> str:
    """A field's name, in dots; a long one is cut."""
    return ".".join(place)[:100].encode("ascii", "backslashreplace").decode()
