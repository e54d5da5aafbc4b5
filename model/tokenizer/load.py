"""From a checkpoint's ``tokenizer.json`` to its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.tokenizer.base import Tokenizer, TokenizerError
from model.tokenizer.bpe import BPETokenizer
from model.tokenizer.byte import ByteTokenizer
from model.tokenizer.char import CharTokenizer

KINDS: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (CharTokenizer, ByteTokenizer, BPETokenizer)}


def tokenizer_from_json(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a checkpoint's ``tokenizer.json`` describes. Raises TokenizerError."""
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TokenizerError(f"the kind of a tokenizer must be one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[kind].from_json(data)
