"""Server-sent events, read by the standard's rules as far as the service uses them."""

from __future__ import annotations

import json
from typing import Any


def event_of(block: str) -> dict[str, Any] | None:
    """The fields of one block (``event``, ``id`` and the parsed ``data``); None for a comment, which has no data."""
    fields: dict[str, Any] = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
    if "data" not in fields:
        return None
    return {**fields, "data": fields["data"] if fields["data"] == "[DONE]" else json.loads(fields["data"])}


def events(text: str) -> list[dict[str, Any]]:
    """All events of a stream that is over."""
    return [event for block in text.split("\n\n") if (event := event_of(block)) is not None]


def joined(found: list[dict[str, Any]]) -> str:
    """The text of a stream of ``/generate``: its events without a name carry it, chunk by chunk."""
    return "".join(event["data"]["text"] for event in found if "event" not in event)
