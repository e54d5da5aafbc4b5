"""Stop strings against `str.find`, exhaustively where that is possible."""

from __future__ import annotations

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from service.engine.stop_strings import StopMatcher


def cut_by_find(text: str, stops: list[str]) -> int | None:
    """The oracle: generation ends at the first character that completes any stop, the text where the longest such stop starts."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


def hold_by_definition(text: str, stops: list[str]) -> int:
    """The longest suffix of the text that is a proper prefix of a stop."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def check(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    for i, character in enumerate(text):
        cut = matcher.feed(character)
        if cut is not None:
            assert cut == cut_by_find(text, stops)
            assert i + 1 == next(e for e in range(1, len(text) + 1) if any(text[:e].endswith(s) for s in stops))
            return
        assert matcher.held == hold_by_definition(text[: i + 1], stops)
    assert cut_by_find(text, stops) is None


def test_every_stop_of_up_to_four_characters() -> None:
    rng = random.Random(0)
    text = "".join(rng.choice("ab") for _ in range(60))
    for length in range(1, 5):
        for letters in product("ab", repeat=length):
            check(text, ["".join(letters)])
            check(text[::-1], ["".join(letters), "abba"])


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=6), max_size=8))
def test_any_stops(text: str, stops: list[str]) -> None:
    check(text, stops)


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 7))
def test_how_text_is_split_does_not_matter(text: str, stops: list[str], size: int) -> None:
    whole, pieces = StopMatcher(stops), StopMatcher(stops)
    expected = whole.feed(text)
    found = None
    for i in range(0, len(text), size):
        found = pieces.feed(text[i : i + size])
        if found is not None:
            break
    assert found == expected
