"""The id of a stream's events, from which a cut stream goes on without any state kept by the server. Pure functions.

    f3a9….0123456789ab.fedcba9876543210.118
    └ request └ checkpoint └ digest of what was asked └ tokens whose text was sent; ``.end`` behind it at the end of a GET

The stream is a pure function of the request and the fingerprint, so resuming is running it again and withholding what was sent;
the digest makes sure that it is the same function.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

EVENT_ID = re.compile(r"([A-Za-z0-9._-]{1,128})\.([0-9a-f]{12})\.([0-9a-f]{16})\.(0|[1-9][0-9]{0,9})(\.end)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class EventId:
    """One event's id, taken apart.

    >>> EventId.parse("my.request.0123456789ab.fedcba9876543210.7").index
    7
    """

    request_id: str
    checkpoint: str
    digest: str
    index: int
    ended: bool = False
    """Of the last event of an address, which nothing follows."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError when ``text`` is no id of ours."""
        match = EVENT_ID.fullmatch(text)
        if match is None:
            raise ValueError("malformed: expected the id of the last event received, as it was sent")
        return cls(match[1], match[2], match[3], int(match[4]), match[5] is not None)


def short_checkpoint(checkpoint_id: str) -> str:
    """The 12 digits of ``sha256:…`` that an event's id carries."""
    return checkpoint_id.removeprefix("sha256:")[:12]


def request_digest(resolved: Mapping[str, object], fingerprint: str) -> str:
    """16 hex digits of everything that the text depends on: the request with its defaults and seed, and the fingerprint."""
    document = json.dumps([resolved, fingerprint], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def event_id_prefix(request_id: str, checkpoint_id: str, digest: str) -> str:
    """An event's id up to its index."""
    return f"{request_id}.{short_checkpoint(checkpoint_id)}.{digest}."
