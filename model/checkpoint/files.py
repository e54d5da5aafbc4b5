"""A checkpoint is a directory of safetensors and JSON: written atomically, verified whole on load, never unpickled.

    model.safetensors   the weights            tokenizer.json   the vocabulary
    config.json         the architecture       selftest.json    known answers: digests of logits
    manifest.json       sha256 of every other file, and where the weights come from

The checkpoint's id is ``sha256:`` of ``manifest.json``, so it names the bytes of everything. No torch here, since the kernels need
none; `model.checkpoint.loading` has the torch side.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from model.checkpoint.manifest import FORMAT, MANIFEST, MAX_JSON_BYTES, CheckpointError, Manifest, parse_json, read_file, read_manifest
from model.config import MAX_PARAMETER, ConfigError, GPTConfig
from model.tokenizer.base import Tokenizer, TokenizerError
from model.tokenizer.load import tokenizer_from_json

MODEL, CONFIG, TOKENIZER, SELFTEST = "model.safetensors", "config.json", "tokenizer.json", "selftest.json"
REQUIRED = (MODEL, CONFIG, TOKENIZER, SELFTEST)

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint, its weights as float32 arrays. Every field agrees with every other."""

    path: Path
    id: str
    """``sha256:`` and 64 hex digits."""
    config: GPTConfig
    tokenizer: Tokenizer
    start: int
    """The token that an empty prompt starts from: the first of the manifest's ``start``, a newline, or token 0."""
    manifest: dict[str, Any]
    selftest: dict[str, Any]
    tensors: dict[str, Array]
    """Name → weights, with the shapes of ``config.parameter_shapes``."""


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
        check_values(path, name, tensors[name])
    return tensors


def check_values(path: Path | str, name: str, tensor: Array) -> None:
    """Raises CheckpointError for numbers that exact arithmetic has no room for."""
    if not np.isfinite(tensor).all():
        raise CheckpointError(f"{path}: {name} holds a value that is not finite")
    if (largest := float(np.abs(tensor).max())) > MAX_PARAMETER:
        raise CheckpointError(f"{path}: {name} holds a value of magnitude {largest:g}, at most {MAX_PARAMETER:g} can be served")


def to_float32(path: Path, name: str, dtype: str, data: bytes) -> Array:
    """Raw little-endian numbers as a flat float32 array; bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F32", "F16"):
        return np.frombuffer(data, np.float32 if dtype == "F32" else np.float16).astype(np.float32)
    raise CheckpointError(f"{path}: {name} has dtype {dtype}, expected F32, F16 or BF16")


def read_verified(manifest: Manifest) -> dict[str, bytes]:
    """The bytes of every file that the manifest lists, each with the hash that it lists. Raises CheckpointError."""
    listed = manifest.files
    for name in REQUIRED:
        if name not in listed:
            raise CheckpointError(f"{manifest.file} does not list {name}")
    contents = {}
    for name, expected in listed.items():
        contents[name] = read_file(manifest.path / name, None if name.endswith(".safetensors") else MAX_JSON_BYTES)
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise CheckpointError(f"{manifest.path / name} does not match its sha256 in {MANIFEST}: truncated, damaged or replaced")
    return contents


def read_checkpoint(path: str | Path, trusted: Sequence[str] | None = None) -> Checkpoint:
    """Read and verify a checkpoint directory. Raises CheckpointError, in one line that names the file.

    ``trusted``: public keys, one of which must have signed it; None asks for no signature.
    """
    manifest = read_manifest(Path(path))
    path = manifest.path
    if trusted is not None:
        from model.checkpoint.signature import verify  # whose library nobody else needs

        verify(path, manifest.data, trusted)
    contents = read_verified(manifest)
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
        id=manifest.id,
        config=config,
        tokenizer=tokenizer,
        start=tokenizer.first(manifest.start),
        manifest=manifest.document,
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
    """Flush a directory's entries, so that a rename survives a power cut, where the file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # SMB and some FUSE mounts
            raise
    finally:
        os.close(descriptor)


def dump_json(value: object) -> bytes:
    """Readable JSON with a final newline."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
