"""Text to token ids and back: one token per character, per byte, or per piece of BPE. No torch here: the HTTP side uses it too.

Whatever the kind, a token stands for some bytes of UTF-8, so there is one way back to text for all of them.
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


class ByteTokenizer(Tokenizer):
    """One token per byte of UTF-8, whose id is the byte: no text is unknown.

    >>> ByteTokenizer().encode("é")
    [195, 169]
    """

    kind = "byte"

    def __init__(self) -> None:
        super().__init__([bytes([i]) for i in range(256)])

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(utf8(self, text))

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"kind": self.kind}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """See `Tokenizer`."""
        return cls()


class Detokenizer:
    """Token ids to text as they come: a character whose bytes come in several tokens comes whole, with the last of them.

    >>> detokenizer = Detokenizer(ByteTokenizer())
    >>> detokenizer.feed(b"a\\xc3"), detokenizer.feed(b"\\xa9")
    ([('a', True), ('', False)], [('é', True)])
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = tokenizer.tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Sequence[int]) -> list[tuple[str, bool]]:
        """The text that each token completes, and whether the token's own text is whole with it.

        What is not whole is exactly one character further on: the one that is begun, or U+FFFD if it is not continued.
        """
        tokens, decode, state = self._tokens, self._decoder.decode, self._decoder.getstate
        return [(decode(tokens[i]), not state()[0]) for i in ids]

    def flush(self) -> str:
        """When nothing more comes: U+FFFD for a character that was begun, else nothing."""
        return self._decoder.decode(b"", True)


def tokenizer_from_json(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a checkpoint's ``tokenizer.json`` describes. Raises TokenizerError."""
    kind = data.get("kind")
    if kind == "bpe":
        from model.tokenizer.bpe import BPETokenizer

        return BPETokenizer.from_json(data)
    for each in (CharTokenizer, ByteTokenizer):
        if kind == each.kind:
            return each.from_json(data)
    raise TokenizerError(f"the kind of a tokenizer must be char, byte or bpe, not {kind!r}")


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
