"""A checkpoint is a directory of safetensors and JSON: written atomically, verified whole on load, never unpickled.

    model.safetensors   the weights            tokenizer.json   the vocabulary
    config.json         the architecture       selftest.json    known answers: logits with a tolerance
    manifest.json       sha256 of every other file, and where the weights come from

The checkpoint's id is ``sha256:`` of ``manifest.json``, so it names the bytes of everything. No torch here: the engine's native
kernels and the HTTP side read checkpoints too; `model.loading` has the torch side.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from model.config import ConfigError, GPTConfig
from model.tokenizer.base import Tokenizer, TokenizerError, tokenizer_from_json

FORMAT = 1
MODEL, CONFIG, TOKENIZER, SELFTEST, MANIFEST = "model.safetensors", "config.json", "tokenizer.json", "selftest.json", "manifest.json"
REQUIRED = (MODEL, CONFIG, TOKENIZER, SELFTEST)
MAX_JSON_BYTES = 64 << 20

Array = NDArray[np.float32]


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or used; the message is one line and names the file."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint, its weights as float32 arrays. Every field agrees with every other."""

    path: Path
    id: str
    """``sha256:`` and 64 hex digits."""
    config: GPTConfig
    tokenizer: Tokenizer
    manifest: dict[str, Any]
    selftest: dict[str, Any]
    tensors: dict[str, Array]

    @property
    def start(self) -> int:
        """The token that an empty prompt starts from: the manifest's ``start``, a newline, or token 0."""
        return self.tokenizer.first(self.manifest.get("start", "\n"))


def read_file(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file. Raises CheckpointError naming it: missing, not a file (a FIFO would block), too large."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            if limit is not None and status.st_size > limit:
                raise CheckpointError(f"{path} has {status.st_size} bytes, more than the {limit} allowed")
            return file.read()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is not a regular file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def parse_tensors(path: Path, data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The tensors of a safetensors file as finite float32 arrays, with exactly the expected names and shapes."""
    try:
        entries = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except Exception as error:  # the library raises its own type, which is no subclass of ValueError
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from None
    if different := sorted(set(entries) ^ set(shapes)):
        raise CheckpointError(f"{path} {'lacks' if different[0] in shapes else 'has an unexpected'} tensor {different[0]!r}")
    tensors = {}
    for name, entry in entries.items():
        if tuple(entry["shape"]) != shapes[name]:
            raise CheckpointError(f"{path}: {name} has shape {tuple(entry['shape'])}, the configuration says {shapes[name]}")
        tensors[name] = to_float32(path, name, entry["dtype"], entry["data"]).reshape(shapes[name])
        if not np.isfinite(tensors[name]).all():
            raise CheckpointError(f"{path}: {name} holds a value that is not finite")
    return tensors


def to_float32(path: Path, name: str, dtype: str, data: bytes) -> Array:
    """Raw little-endian numbers as float32; bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F32", "F16"):
        return np.frombuffer(data, np.float32 if dtype == "F32" else np.float16).astype(np.float32)
    raise CheckpointError(f"{path}: {name} has dtype {dtype}, expected F32, F16 or BF16")


def read_manifest(path: Path, trusted: Sequence[str] | None = None) -> tuple[str, dict[str, Any]]:
    """The id and the manifest of a checkpoint directory, without reading its other files. Raises CheckpointError.

    ``trusted``: public keys, one of which must have signed it; None asks for no signature.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory: a checkpoint is a directory with a {MANIFEST}")
    data = read_file(path / MANIFEST, MAX_JSON_BYTES)
    if trusted is not None:
        check_signature(path, data, trusted)
    manifest = parse_json(path / MANIFEST, data)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path / MANIFEST} has format {manifest.get('format')!r}, this version reads format {FORMAT}")
    if not isinstance(manifest.get("start", ""), str):
        raise CheckpointError(f"{path / MANIFEST}: start must be a string")
    return "sha256:" + hashlib.sha256(data).hexdigest(), manifest


def check_signature(path: Path, manifest: bytes, trusted: Sequence[str]) -> None:
    """Raises CheckpointError."""
    from model.checkpoint.signature import SignatureError, verify

    try:
        verify(path, manifest, trusted)
    except SignatureError as error:
        raise CheckpointError(str(error)) from None


def read_verified(path: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of every file that the manifest lists, each with the hash that it lists. Raises CheckpointError."""
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not all(isinstance(name, str) and isinstance(h, str) for name, h in listed.items()):
        raise CheckpointError(f"{path / MANIFEST} must list the sha256 of every file under 'files'")
    for name in REQUIRED:
        if name not in listed:
            raise CheckpointError(f"{path / MANIFEST} does not list {name}")
    contents = {}
    for name, expected in listed.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{path / MANIFEST} lists {name!r}, which is not a plain file name")
        contents[name] = read_file(path / name, None if name.endswith(".safetensors") else MAX_JSON_BYTES)
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise CheckpointError(f"{path / name} does not match its sha256 in {MANIFEST}: truncated, damaged or replaced")
    return contents


def read_checkpoint(path: str | Path, trusted: Sequence[str] | None = None) -> Checkpoint:
    """Read and verify a checkpoint directory. Raises CheckpointError, in one line that names the file.

    ``trusted``: public keys, one of which must have signed it; None asks for no signature.
    """
    path = Path(path)
    checkpoint_id, manifest = read_manifest(path, trusted)
    contents = read_verified(path, manifest)
    try:
        config = GPTConfig.from_json(parse_json(path / CONFIG, contents[CONFIG]))
    except ConfigError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from None
    try:
        tokenizer = tokenizer_from_json(parse_json(path / TOKENIZER, contents[TOKENIZER]))
    except TokenizerError as error:
        raise CheckpointError(f"{path / TOKENIZER}: {error}") from None
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(f"{path / TOKENIZER} has {tokenizer.vocab_size} tokens, {CONFIG} says {config.vocab_size}")
    return Checkpoint(
        path=path,
        id=checkpoint_id,
        config=config,
        tokenizer=tokenizer,
        manifest=manifest,
        selftest=parse_json(path / SELFTEST, contents[SELFTEST]),
        tensors=parse_tensors(path / MODEL, contents[MODEL], config.parameter_shapes),
    )


def write_checkpoint(path: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint directory so that at no moment a half of one can be seen under ``path``.

    Everything is written beside ``path``, flushed to the disk, and renamed into place. An existing directory is an error
    (OSError); a failure of any kind leaves nothing behind.
    """
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    document = {"format": FORMAT, "files": hashes, **manifest}
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        for name, data in {**files, MANIFEST: dump_json(document)}.items():
            with open(temporary / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(temporary)
        temporary.rename(path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dump_json(value: object) -> bytes:
    """Readable JSON with a final newline."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
