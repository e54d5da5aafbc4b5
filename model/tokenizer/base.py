"""What every tokenizer is. A token stands for some bytes of UTF-8, whatever its kind, so there is one way back to text for all.

No torch here: the API process uses it too.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self


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


class Tokenizer(ABC):
    """``decode(encode(text)) == text`` for every text that ``encode`` accepts."""

    kind: ClassVar[str]
    version = ""
    """Of the library that encodes, since another one could encode otherwise; empty where the code is ours."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tuple(tokens)
        """The bytes of each token."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        r"""Each token as one reads it. Bytes that are no text by themselves look like ``bytes:\xe2\x82`` (OpenAI's notation)."""
        return tuple(map(readable, self.tokens))

    @cached_property
    def whole_texts(self) -> tuple[str, ...] | None:
        """``texts`` if each token is text by itself, whatever stands before it, as characters are; else None."""
        try:
            return tuple(token.decode() for token in self.tokens)
        except UnicodeDecodeError:
            return None

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each of ``texts``; of several that look the same the lowest."""
        return {text: self.vocab_size - 1 - i for i, text in enumerate(reversed(self.texts))}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``. Raises UnknownCharacterError."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, each in [0, vocab_size); bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self.tokens[i] for i in ids]).decode("utf-8", "replace")

    def unknown(self, text: str) -> dict[str, list[int]]:
        """Characters that cannot be encoded, with their offsets in code points: here lone surrogates, which UTF-8 does not have."""
        return offsets(text, lambda c: not "\ud800" <= c <= "\udfff")

    def first(self, text: str) -> int:
        """The first token of a text, or token 0 where there is none or it is unknown."""
        return self.encode(text)[0] if text and not self.unknown(text) else 0

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What ``tokenizer.json`` of a checkpoint holds."""

    @classmethod
    @abstractmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`. Raises TokenizerError."""


class Detokenizer:
    """Token ids to text as they come: a character whose bytes come in several tokens comes whole, with the last of them.

    >>> detokenizer = Detokenizer(ByteTokenizer())
    >>> detokenizer.feed(b"a\\xc3"), detokenizer.feed(b"\\xa9")
    ([('a', True), ('', False)], [('é', True)])
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = tokenizer.tokens
        self._whole = tokenizer.whole_texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Sequence[int]) -> list[tuple[str, bool]]:
        """The text that each token completes, and whether the token's own text is whole with it.

        What is not whole is exactly one character further on: the one that is begun, or U+FFFD if it is not continued.
        """
        if (whole := self._whole) is not None:
            return [(whole[i], True) for i in ids]
        tokens, decode, state = self._tokens, self._decoder.decode, self._decoder.getstate
        return [(decode(tokens[i]), not state()[0]) for i in ids]

    def flush(self) -> str:
        """When nothing more comes: U+FFFD for a character that was begun, else nothing."""
        return self._decoder.decode(b"", True)


def readable(token: bytes) -> str:
    """A token as one reads it."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def offsets(text: str, known: Callable[[str], bool]) -> dict[str, list[int]]:
    """Where the characters stand that are not ``known``."""
    found: dict[str, list[int]] = {}
    for offset, character in enumerate(text):
        if not known(character):
            found.setdefault(character, []).append(offset)
    return found


def utf8(tokenizer: Tokenizer, text: str) -> bytes:
    """The bytes of a text. Raises UnknownCharacterError for lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UnknownCharacterError(tokenizer.unknown(text)) from None
