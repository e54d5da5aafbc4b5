"""Stop strings, found as text grows, so that no part of one is ever sent and nothing else is held back."""

from __future__ import annotations

from collections.abc import Sequence


def failure_table(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix too (Knuth, Morris and Pratt 1977)."""
    table = [0] * len(pattern)
    for i in range(1, len(pattern)):
        k = table[i - 1]
        while k and pattern[i] != pattern[k]:
            k = table[k - 1]
        table[i] = k + (pattern[i] == pattern[k])
    return table


class StopMatcher:
    """Feed text; learn where it must end, and how much of its end could still become a stop.

    >>> matcher = StopMatcher(["end"])
    >>> matcher.feed("the e"), matcher.held
    (None, 1)
    >>> matcher.feed("nd of")          # the stop starts at offset 4 of all text
    4

    ``held`` is the length of the longest suffix that is a proper prefix of a stop: that much, and no more, is not yet safe to
    send. Of stops that complete at one character the longest wins, since it starts first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [(stop, failure_table(stop)) for stop in stops]
        self.matched = [0] * len(stops)  # how much of each stop the end of the text is
        self.length = 0

    @property
    def held(self) -> int:
        """Characters at the end of the text that may belong to a stop."""
        return max(self.matched, default=0)

    def feed(self, text: str) -> int | None:
        """Append ``text``; the offset at which all text must end if a stop is complete, else None."""
        if not self.stops:
            self.length += len(text)
            return None
        for character in text:
            self.length += 1
            complete = 0
            for i, (stop, failure) in enumerate(self.stops):
                k = self.matched[i]
                while k and stop[k] != character:
                    k = failure[k - 1]
                k += stop[k] == character
                if k == len(stop):
                    complete = max(complete, k)
                    k = failure[k - 1]
                self.matched[i] = k
            if complete:
                return self.length - complete
        return None
