"""One token per byte of UTF-8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from model.tokenizer.base import Tokenizer, utf8


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
