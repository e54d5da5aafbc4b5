"""The id of an event: taken apart as it was put together, whatever the request is called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.event_id import EventId, event_id_prefix, request_digest, short_checkpoint

CHECKPOINT = "sha256:" + "0123456789abcdef" * 4


@given(st.text("abcZ019._-", min_size=1, max_size=128), st.integers(0, 10**9))
def test_round_trip(request_id: str, index: int) -> None:
    digest = request_digest({"seed": 1}, "f")
    parsed = EventId.parse(event_id_prefix(request_id, CHECKPOINT, digest) + str(index))
    assert parsed == EventId(request_id, short_checkpoint(CHECKPOINT), digest, index)


@given(st.text(max_size=60))
def test_garbage_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        EventId.parse(text)


def test_digest_depends_on_all_and_on_no_order() -> None:
    base = request_digest({"a": 1, "b": 2.0}, "f")
    assert base == request_digest({"b": 2.0, "a": 1}, "f")
    assert len({base, request_digest({"a": 1, "b": 2.5}, "f"), request_digest({"a": 1, "b": 2.0}, "g")}) == 3
