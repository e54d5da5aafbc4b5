"""One token per character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from model.tokenizer.base import Tokenizer, TokenizerError, UnknownCharacterError, offsets


class CharTokenizer(Tokenizer):
    """One token per character; ids in code point order.

    >>> tokenizer = CharTokenizer.from_text("hello")
    >>> tokenizer.encode("hole"), tokenizer.decode([1, 0])
    ([1, 3, 2, 0], 'he')
    """

    kind = "char"

    def __init__(self, characters: Sequence[str]) -> None:
        if not characters or any(len(c) != 1 for c in characters) or len(set(characters)) != len(characters):
            raise TokenizerError("a character vocabulary must list distinct single characters, at least one")
        if any("\ud800" <= c <= "\udfff" for c in characters):
            raise TokenizerError("a character vocabulary must not list surrogates: no UTF-8 text holds one")
        super().__init__([c.encode() for c in characters])

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The vocabulary of a text. Raises TokenizerError when the text is empty."""
        return cls(sorted(set(text)))

    def unknown(self, text: str) -> dict[str, list[int]]:
        """Characters that the vocabulary lacks, with their offsets in code points."""
        return offsets(text, self.ids.__contains__)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        try:
            return [self.ids[c] for c in text]
        except KeyError:
            raise UnknownCharacterError(self.unknown(text)) from None

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"kind": self.kind, "characters": list(self.texts)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """See `Tokenizer`."""
        characters = data.get("characters")
        if not isinstance(characters, list) or not all(isinstance(c, str) for c in characters):
            raise TokenizerError("a character vocabulary must list strings as its characters")
        return cls(characters)
