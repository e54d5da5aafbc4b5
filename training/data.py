"""Texts: found or downloaded, decoded, checked and read as a stream, so that a text of any size takes the same memory."""

from __future__ import annotations

import codecs
import functools
import glob
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from training.config import TrainingError
from training.encoding import explain_bytes, wide_encoding
from training.run_directory import RunDocument

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CHUNK = 1 << 20
"""Bytes read at once."""
NUM_CODE_POINTS = 0x110000


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is known of a text after one pass over it; ``chunks()`` reads it again."""

    name: str
    sha256: str
    """Of the bytes of its files, one after the other."""
    characters: int
    num_bytes: int
    """Of its characters in UTF-8."""
    alphabet: tuple[str, ...]
    """The distinct characters in code point order."""
    chunks: Callable[[], Iterator[str]]
    paths: tuple[str, ...] | None = None
    """As the user gave them; None for the download."""
    line_ends: tuple[str, ...] = ()
    """Those other than a line feed that were read as one."""
    validation: Text | None = None
    """A text of its own to validate with; without it the last 10 % of this one."""

    @classmethod
    def of(cls, text: str, name: str = "text") -> Text:
        """A text that is in memory already."""
        characters, num_bytes, alphabet = survey([text])
        digest = hashlib.sha256(text.encode()).hexdigest()
        return cls(name=name, sha256=digest, characters=characters, num_bytes=num_bytes, alphabet=alphabet, chunks=lambda: iter([text]))

    @property
    def label(self) -> str:
        """How a message calls it: as the user gave it."""
        return " ".join(self.paths) if self.paths else self.name


def cache_directory() -> Path:
    """What can be made again: ``$XDG_CACHE_HOME/folio``, else ``~/.cache/folio``, or a temporary directory for a user without a home."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "folio"
    try:
        return Path.home() / ".cache" / "folio"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"folio-{os.getuid()}"


def load_text(data: Sequence[str] | None, validation: Sequence[str] | None = None, *, keep_line_ends: bool = False) -> Text:
    """The text of some files, directories and globs, of ``$FOLIO_DATA``, or Tiny Shakespeare. Raises TrainingError, saying the way out."""
    given = data or ([os.environ["FOLIO_DATA"]] if os.environ.get("FOLIO_DATA") else None)
    text = open_files([download()] if given is None else find_files(given), keep_line_ends)
    text = replace(text, paths=tuple(given) if given else None)
    return replace(text, validation=load_text(validation, keep_line_ends=keep_line_ends)) if validation else text


def load_run_text(document: RunDocument, data: Sequence[str] | None) -> Text:
    """The text that a run was begun with: ``data``, else where it lay then, else as :func:`load_text` finds it. Raises TrainingError."""
    keep = document.train.keep_line_ends
    stored = document.data_paths if document.data_paths and all(map(exists, document.data_paths)) else None
    text = load_text(data or stored, keep_line_ends=keep)
    if text.sha256 != document.data_sha256:
        raise TrainingError(f"{text.label} is not the text of this run ({document.data_name}, by its sha256); pass it with --data")
    if document.validation is None:
        return text
    validation = load_text(document.validation["paths"], keep_line_ends=keep)
    if validation.sha256 != document.validation["sha256"]:
        raise TrainingError(f"{validation.label} is not the validation text that this run was begun with, by its sha256")
    return replace(text, validation=validation)


def exists(item: str) -> bool:
    """Whether a path is there, or a glob finds something."""
    return Path(item).exists() or bool(glob.glob(item, recursive=True))


def find_files(items: Sequence[str]) -> list[Path]:
    """Files as given, the ``*.txt`` below directories, and what globs match, in the order of the command line. Raises TrainingError."""
    found: list[Path] = []
    for item in items:
        path = Path(item)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*.txt") if file.is_file())
            if not files:
                raise TrainingError(f"{path} is a directory without a .txt file: name others with a glob, such as --data '{path}/**/*.md'")
        elif path.exists() or not glob.has_magic(item):
            files = [path]
        else:
            files = sorted(Path(name) for name in glob.glob(item, recursive=True) if Path(name).is_file())
            if not files:
                raise TrainingError(f"no file matches {item!r}")
        found += files
    return found


def open_files(files: Sequence[Path], keep_line_ends: bool) -> Text:
    """One text of several files, surveyed. Raises TrainingError."""
    digest = hashlib.sha256()
    line_ends: set[str] = set()
    characters, num_bytes, alphabet = survey(read_files(files, keep_line_ends, digest.update, line_ends.update))
    return Text(
        name=files[0].name if len(files) == 1 else f"{files[0].parent.name or '.'} ({len(files)} files)",
        sha256=digest.hexdigest(),
        characters=characters,
        num_bytes=num_bytes,
        alphabet=alphabet,
        chunks=functools.partial(read_files, files, keep_line_ends),
        line_ends=() if keep_line_ends else tuple(sorted(line_ends - {"\n"})),
    )


def read_files(
    files: Sequence[Path],
    keep_line_ends: bool,
    see_bytes: Callable[[bytes], object] = lambda data: None,
    see_line_ends: Callable[[tuple[str, ...]], object] = lambda kinds: None,
) -> Iterator[str]:
    """The files' characters in chunks, each file from a line of its own on. Raises TrainingError."""
    last = "\n"
    for path in files:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=not keep_line_ends)
        if last != "\n":
            yield "\n"
        for data in read_bytes(path):
            see_bytes(data)
            if b"\0" in data and wide_encoding(data):
                raise TrainingError(explain_bytes(path))
            try:
                part = decoder.decode(data, final=not data)
            except UnicodeDecodeError:
                raise TrainingError(explain_bytes(path)) from None
            if part:
                last = part[-1]
                yield part
        kinds = decoder.newlines or ()
        see_line_ends((kinds,) if isinstance(kinds, str) else kinds)


def read_bytes(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks, then an empty one. Raises TrainingError."""
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                yield data
    except OSError as error:
        raise TrainingError(f"cannot read the text {path}: {error.strerror}") from None
    yield b""


def survey(chunks: Iterator[str] | Sequence[str]) -> tuple[int, int, tuple[str, ...]]:
    """Characters, bytes of UTF-8, and the distinct characters in code point order."""
    seen = np.zeros(NUM_CODE_POINTS, bool)
    characters = num_bytes = 0
    for chunk in chunks:
        seen[code_points(chunk)] = True
        characters += len(chunk)
        num_bytes += len(chunk.encode())
    return characters, num_bytes, tuple(map(chr, np.flatnonzero(seen)))


def code_points(text: str) -> NDArray[np.uint32]:
    """(N,) the code points of N characters."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def beginning(text: Text, characters: int) -> Iterator[str]:
    """The first ``characters`` of a text, in chunks."""
    for chunk in text.chunks():
        if characters <= 0:
            return
        yield chunk[:characters]
        characters -= len(chunk)


def download() -> Path:
    """Tiny Shakespeare, downloaded once and held against its sha256. Raises TrainingError when there is no network."""
    path = cache_directory() / "tinyshakespeare.txt"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
        return path
    try:
        response = httpx.get(URL, timeout=30, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        raise TrainingError(
            f"cannot download Tiny Shakespeare ({type(error).__name__}). Pass a text of your own with --data FILE (make train "
            f"DATA=FILE), or set FOLIO_DATA to a copy of {URL}"
        ) from None
    if hashlib.sha256(response.content).hexdigest() != SHA256:
        raise TrainingError(f"{URL} is not the text that was expected (its sha256 differs); pass a file with --data FILE")
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(response.content)
        temporary.replace(path)
    except OSError as error:
        raise TrainingError(
            f"cannot keep the downloaded text as {path}: {error.strerror}; set XDG_CACHE_HOME, or pass --data FILE"
        ) from None
    return path
