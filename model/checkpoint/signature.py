"""Who vouches for a checkpoint: an Ed25519 signature (RFC 8032) of ``manifest.json``, which names the bytes of everything else.

Keys are base64 of the 32 raw bytes where they are public, PEM files where they are private.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from model.checkpoint.manifest import SIGNATURE, CheckpointError, read_file

MAX_SIGNATURE_BYTES = 1024


class SignatureError(CheckpointError):
    """A signature that is missing, wrong, or made by nobody who is trusted; or a key that is no key."""


def public_key_text(key: Ed25519PrivateKey) -> str:
    """What goes into FOLIO_TRUSTED_KEYS."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def parse_public_key(text: str) -> Ed25519PublicKey:
    """Raises SignatureError."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise SignatureError(f"{text[:12]}… is not the base64 of an Ed25519 public key (44 characters)") from None


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """A PEM file as `openssl genpkey -algorithm ed25519` writes it. Raises SignatureError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SignatureError(f"{path} cannot be read as an unencrypted PEM private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} is not an Ed25519 key; make one with: openssl genpkey -algorithm ed25519 -out {path}")
    return key


def new_private_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it where only its owner can read it. Raises SignatureError rather than overwrite one."""
    key = Ed25519PrivateKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SignatureError(f"cannot write {path}: {error.strerror}") from None
    with open(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def sign(checkpoint: Path, manifest: bytes, key: Ed25519PrivateKey) -> None:
    """Write ``manifest.sig``, by rename."""
    temporary = checkpoint / f".{SIGNATURE}.{os.getpid()}"
    temporary.write_bytes(base64.b64encode(key.sign(manifest)) + b"\n")
    temporary.replace(checkpoint / SIGNATURE)


def verify(checkpoint: Path, manifest: bytes, trusted: Sequence[str]) -> None:
    """Raises SignatureError unless ``manifest.sig`` was made over exactly these bytes by one of the trusted keys."""
    keys = [parse_public_key(text) for text in trusted]
    path = checkpoint / SIGNATURE
    try:
        signature = base64.b64decode(read_file(path, MAX_SIGNATURE_BYTES))
    except CheckpointError as error:
        raise SignatureError(f"{error}, and signatures are required; sign it with: folio-train sign {checkpoint}") from None
    except ValueError:
        raise SignatureError(f"{path} is not a signature") from None
    for key in keys:
        try:
            key.verify(signature, manifest)
            return
        except InvalidSignature:
            continue
    raise SignatureError(f"{path} was not made by any of the {len(keys)} trusted keys over this manifest.json")
