"""One request as the layers and the routes hand it to each other: its id, its key, when it began and how it ended."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class RequestState:
    """What is known of one request. ``AccessLog`` makes it, ``Auth`` adds the key, routes add what they found out."""

    request_id: str
    started: float
    """``time.monotonic()`` when its headers had arrived."""
    key: str | None = None
    """The name of the key that it came with; None where none is asked for."""
    num_texts: int = 0
    """Texts that were admitted for it."""
    charged_tokens: int = 0
    """Tokens that they may take, prompts included."""
    used_tokens: int = 0
    """Tokens that they took so far."""
    is_admitted: bool = False
    """Whether it counts as started against its key's rate."""
    code: str | None = None
    """The code of the error that it ended with."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Numbers and hashes for the log and the trace; never text."""


def request_state(scope: MutableMapping[str, Any]) -> RequestState:
    """The state of the request with this ASGI scope."""
    state: RequestState = scope["state"]["request"]
    return state
