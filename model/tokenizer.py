"""Text to token ids and back. No torch here: the HTTP side uses it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used."""


class UnknownCharacterError(ValueError):
    """Text with characters that the vocabulary lacks.

    ``characters`` maps each such character to the offsets (code points) where it stands, in order of appearance.
    """

    def __init__(self, characters: dict[str, list[int]]) -> None:
        self.characters = characters
        shown = ", ".join(f"{c!a} at {', '.join(map(str, o[:5]))}{' …' if len(o) > 5 else ''}" for c, o in list(characters.items())[:8])
        more = f" and {len(characters) - 8} more" if len(characters) > 8 else ""
        super().__init__(f"the model does not know these characters: {shown}{more}")


class CharTokenizer:
    """One token per character; ids in code point order.

    >>> tokenizer = CharTokenizer.from_text("hello")
    >>> tokenizer.encode("hole"), tokenizer.decode([1, 0])
    ([1, 3, 2, 0], 'he')

    ``decode(encode(text)) == text`` for every text that ``encode`` accepts.
    """

    kind = "char"

    def __init__(self, characters: Sequence[str]) -> None:
        if not characters or any(len(c) != 1 for c in characters) or len(set(characters)) != len(characters):
            raise TokenizerError("a character vocabulary must list distinct single characters, at least one")
        if any("\ud800" <= c <= "\udfff" for c in characters):
            raise TokenizerError("a character vocabulary must not list surrogates: no UTF-8 text holds one")
        self.characters = tuple(characters)
        self.ids = {c: i for i, c in enumerate(self.characters)}

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The vocabulary of a text. Raises TokenizerError when the text is empty."""
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        """Number of distinct tokens."""
        return len(self.characters)

    def unknown(self, text: str) -> dict[str, list[int]]:
        """Characters that the vocabulary lacks, with their offsets in code points."""
        found: dict[str, list[int]] = {}
        for offset, character in enumerate(text):
            if character not in self.ids:
                found.setdefault(character, []).append(offset)
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``. Raises UnknownCharacterError."""
        try:
            return [self.ids[c] for c in text]
        except KeyError:
            raise UnknownCharacterError(self.unknown(text)) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, each in [0, vocab_size)."""
        return "".join([self.characters[i] for i in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return [self.characters[i] for i in ids]

    def to_json(self) -> dict[str, Any]:
        """What ``tokenizer.json`` of a checkpoint holds."""
        return {"kind": self.kind, "characters": list(self.characters)}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The inverse of :meth:`to_json`. Raises TokenizerError."""
        if not isinstance(data, dict) or data.get("kind") != cls.kind or not isinstance(data.get("characters"), list):
            raise TokenizerError('a character tokenizer must be {"kind": "char", "characters": […]}')
        if not all(isinstance(c, str) for c in data["characters"]):
            raise TokenizerError("a character vocabulary must list strings")
        return cls(data["characters"])
