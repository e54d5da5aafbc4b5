"""The service's configuration: FOLIO_ variables and flags, checked once, then frozen. Every default stands here alone."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import model
from service.engine.interface import EngineOptions

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRETRAINED = Path(model.__file__).parent / "pretrained"


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/folio, else ~/.cache/folio, or for a user without a home folio-UID among the temporary files."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio"
    except RuntimeError:
        return temporary_cache()


def temporary_cache() -> Path:
    """Where copies go for a user without a home."""
    return Path(tempfile.gettempdir()) / f"folio-{os.getuid()}"


def has_opentelemetry() -> bool:
    """Whether the extra for traces is installed; asked without importing it."""
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.exporter.otlp.proto.http") is not None


REMOVED = {
    "require_signature": "FOLIO_TRUSTED_KEYS, which alone asks for signatures now",
    "max_headers": "FOLIO_MAX_HEADER_BYTES, which bounds them all",
    "header_timeout_s": "FOLIO_REQUEST_TIMEOUT_S",
    "body_timeout_s": "FOLIO_REQUEST_TIMEOUT_S",
    "dtype": "FOLIO_KERNELS or FOLIO_CPU, if it was set for speed: there is one arithmetic now, the same bytes everywhere",
}
"""Settings of earlier versions, and what does their work now. Ignoring one silently could open what it closed."""
LISTS = ("allowed_hosts", "cors_origins", "trusted_keys")
ADMIN, ANONYMOUS = "admin", "anonymous"
"""What logs and metrics call the admin key, and whoever has none."""
KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+/?")


class Settings(BaseSettings):
    """What a person may set. ``FOLIO_MAX_BATCH=64`` and ``--max-batch 64`` are the same; the flag wins."""

    model_config = SettingsConfigDict(env_prefix="FOLIO_", frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True)

    checkpoint: Path = Field(PRETRAINED, description="directory of the checkpoint to serve")
    checkpoints: Path | None = Field(None, description="directory of checkpoints that an admin may promote, by id")
    watch: Path | None = Field(None, description="a training run's best/: each better checkpoint there is promoted by itself")
    receipt_key: Path | None = Field(None, description="Ed25519 private key (PEM) that receipts are signed with; unsigned if not set")
    trusted_keys: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="public keys, separated by commas: only checkpoints that one of them has signed are served (folio-train sign)"
    )
    served_model_name: str = Field("folio", min_length=1, max_length=128, description="the name under /v1 of whatever checkpoint serves")
    host: str = Field("127.0.0.1", description="address to listen on; without keys only a loopback address")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs; auto takes the GPU if there is one")
    kernels: Literal["auto", "cuda", "native", "torch"] = Field(
        "auto", description="what computes: C for a GPU (cuda) or the CPU (native), or PyTorch; auto: the fastest that is here"
    )
    cpu: Literal["auto", "avx512", "avxvnni", "avx2", "dotprod", "neon", "generic"] = Field(
        "auto", description="instruction set of the native kernels; auto: the best that the processor has"
    )
    threads: int | None = Field(None, ge=1, le=256, description="CPU threads of the engine; measured for the machine if not set")
    speculation: bool = Field(True, description="let each pass check guesses of the coming tokens: faster, the same bytes")
    stride: int | None = Field(None, ge=1, description="how far the anchored window jumps when it is full; measured if not set")
    cache: Path = Field(default_factory=cache_directory, description="directory for copies of the checkpoints that a run writes")
    max_batch: int | None = Field(None, ge=1, le=4096, description="texts generated at once; measured for the device if not set")
    max_queue: int | None = Field(None, ge=0, description="requests that may wait; four times the batch, at least 256, if not set")
    queue_timeout_s: float = Field(300.0, gt=0, description="a request that waited this long for its turn is given up")
    context: Literal["anchored", "sliding"] = Field("anchored", description="window rule of requests that do not choose one")
    stream_buffer_tokens: int = Field(1024, ge=16, description="tokens kept for a slow reader before its text is suspended")
    max_new_tokens: int = Field(4096, ge=1, le=2**31 - 1, description="most tokens that one request may ask for")

    root_path: str = Field("", description="path under which a proxy shows the service, such as /folio")
    allowed_hosts: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description="names, separated by commas, by which a server without keys may be asked beside localhost; if not set, any "
        "name unless it listens on loopback only",
    )

    api_keys: SecretStr | None = Field(
        None, description="keys that clients must present, separated by commas, each as KEY or NAME:KEY; logs and metrics say the name"
    )
    api_keys_file: Path | None = Field(None, description="file of such keys, one a line")
    admin_key: SecretStr | None = Field(None, description="key of the /admin routes; without one they are closed")
    admin_key_file: Path | None = Field(None, description="file that holds the admin key")
    allow_anonymous: bool = Field(False, description="serve without keys on an address that others can reach")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field((), description="web origins whose pages may call, separated by commas")

    share_weights: bool | None = Field(
        None, description="give the weights to whoever may generate, to check texts elsewhere; if not set, on loopback without keys only"
    )

    rate_limit: float | None = Field(None, gt=0, description="requests a second that each key may start; no limit if not set")
    rate_burst: int = Field(10, ge=1, description="requests that a key may start at once under the rate limit")
    max_concurrent: int | None = Field(None, ge=1, description="texts that each key may have running or waiting; no limit if not set")
    tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens, of prompts and texts together, that each key may use in a minute; no limit if not set"
    )

    max_body_bytes: int = Field(1 << 20, ge=1024, description="largest request body")
    max_header_bytes: int = Field(16 << 10, ge=1024, description="largest request line and headers together")
    request_timeout_s: float = Field(20.0, gt=0, description="time for a request's headers to arrive, and again for its body")
    idle_timeout_s: float = Field(75.0, gt=0, description="time that a connection may wait for its next request")
    write_timeout_s: float = Field(120.0, gt=0, description="a client that takes no byte for this long is dropped")
    keep_alive_s: float = Field(10.0, gt=0, description="a stream that is silent for this long gets a comment")
    grace_s: float = Field(30.0, ge=0, description="time for running texts to finish when the server is told to end")

    tls_cert: Path | None = Field(None, description="certificate chain (PEM) to serve HTTPS with")
    tls_key: Path | None = Field(None, description="private key (PEM) of the certificate")
    otel_endpoint: str | None = Field(None, description="base URL of an OpenTelemetry collector (OTLP over HTTP) to send traces to")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @model_validator(mode="before")
    @classmethod
    def split_lists(cls, data: object) -> object:
        """Lists come as text with commas from a variable or a flag."""
        if not isinstance(data, dict):
            return data
        lists = {name: data[name] for name in LISTS if isinstance(data.get(name), str)}
        return {**data, **{name: tuple(part for part in map(str.strip, text.split(",")) if part) for name, text in lists.items()}}

    @field_validator("root_path")
    @classmethod
    def check_root_path(cls, path: str) -> str:
        """A path begins with a slash and ends without."""
        if path and not ROOT_PATH.fullmatch(path):
            raise ValueError(f"{path} is no path such as /folio")
        return path.rstrip("/")

    @model_validator(mode="after")
    def check_exposure(self) -> Self:
        """Nobody serves the world without keys by accident, and one process means one engine and one set of metrics."""
        if not (self.client_keys() or self.allow_anonymous or is_loopback(self.host)):
            raise ValueError(
                f"without keys the service listens on loopback only, not on {self.host}: set FOLIO_API_KEYS or FOLIO_API_KEYS_FILE, "
                "or allow anyone with --allow-anonymous (FOLIO_ALLOW_ANONYMOUS=1)"
            )
        for name, successor in REMOVED.items():
            if os.environ.get(f"FOLIO_{name.upper()}"):
                raise ValueError(f"FOLIO_{name.upper()} is no setting any more: unset it and use {successor}")
        if (workers := os.environ.get("WEB_CONCURRENCY", "1")) not in ("", "0", "1"):
            raise ValueError(f"WEB_CONCURRENCY={workers}: one process serves all, since each would load an engine of its own; unset it")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if self.trusted_keys == ():
            raise ValueError("trusted_keys is set and holds no key")
        if self.otel_endpoint and not has_opentelemetry():
            raise ValueError("otel_endpoint needs OpenTelemetry: pip install 'folio[otel]'")
        self.admin_secret()
        return self

    def receipt_signing_key(self) -> Ed25519PrivateKey | None:
        """The key that receipts are signed with. Raises ValueError."""
        if self.receipt_key is None:
            return None
        from model.checkpoint.signature import read_private_key

        return read_private_key(self.receipt_key)

    def client_keys(self) -> dict[str, str]:
        """The clients' keys by name. Raises ValueError for a source without one: a mistake must not open the door."""
        keys = split_keys(self.api_keys.get_secret_value()) if self.api_keys else ()
        if self.api_keys and not keys:
            raise ValueError("api_keys is set and holds no key")
        return named_keys(keys + (read_keys(self.api_keys_file) if self.api_keys_file else ()))

    @property
    def is_private(self) -> bool:
        """Whether only this machine's users can ask, and no key says who they are."""
        return is_loopback(self.host) and not self.client_keys()

    def engine_options(self) -> EngineOptions:
        """The engine's share, in its own type: the engine knows no environment."""
        names = [field.name for field in fields(EngineOptions) if field.name != "environment"]
        return EngineOptions(**{name: getattr(self, name) for name in names}, environment=os.environ)

    def admin_secret(self) -> str | None:
        """The admin key, if there is one."""
        if self.admin_key_file:
            return read_keys(self.admin_key_file)[0]
        return self.admin_key.get_secret_value() if self.admin_key else None


def split_keys(text: str) -> tuple[str, ...]:
    """Keys separated by commas or new lines."""
    return tuple(key for key in map(str.strip, text.replace("\n", ",").split(",")) if key)


def named_keys(keys: Sequence[str]) -> dict[str, str]:
    """Keys, written as KEY or NAME:KEY, by name; one without is called after its place. Raises ValueError, which tells no key.

    >>> named_keys(["alice:s3cret", "0th3r"])
    {'alice': 's3cret', 'key-2': '0th3r'}
    """
    named: dict[str, str] = {}
    for place, text in enumerate(keys, start=1):
        name, _, key = text.rpartition(":")
        name = name or f"key-{place}"
        if not (KEY_NAME.fullmatch(name) and key):
            raise ValueError(f"key {place} must be KEY or NAME:KEY, the name of letters, digits, dots, dashes and underscores")
        if name in named or name in (ADMIN, ANONYMOUS):
            raise ValueError(f"two keys are called {name}")
        named[name] = key
    return named


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys in a file, at least one. Raises ValueError naming the file, never its content."""
    try:
        keys = split_keys(path.read_text())
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{path} cannot be read") from None
    if not keys:
        raise ValueError(f"{path} holds no key")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
