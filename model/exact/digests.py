"""Known answers in a checkpoint: digests of logits, which every engine must equal in every bit before it serves.

``selftest.json``, written with the checkpoint and part of its id::

    {"arithmetic": 1,                 version of the arithmetic
     "tokens": [18, 47, …],           at least 200
     "digests": {"text": "9f…", "moved": "03…", "start": "c1…"}}

A digest is the sha256, in hex, of logits as little-endian float32, (N, V), one line for each token. Each is of tokens that are encoded
from position 0 on, in any row, cut into passes in any way, whatever other rows do:

    text    all tokens, in consecutive windows of the context's length, the last one shorter; the windows' logits one after another
    moved   the tokens from the middle on, at most a context of them: what a row encodes again when its window has moved
    start   the first four tokens

An engine should encode ``text`` token by token in its first row, ``moved`` there afterwards in one pass, and ``start`` in every other row
side by side. Checkpoints of before have no digests: :func:`known_answers` is then None, and :func:`from_cases` makes some of their text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.checkpoint.manifest import CheckpointError
from model.config import GPTConfig
from model.exact.arithmetic import Floats
from model.exact.network import ExactModel
from model.version import ARITHMETIC_VERSION

NUM_TOKENS = 208
NUM_UNKNOWN = 64
"""Tokens that are compared for a checkpoint without digests: the reference computes them at each start."""
NAMES = ("text", "moved", "start")

Logits = Callable[[Sequence[int]], Floats]
"""Tokens from position 0 on, at most a context of them → (N, V) logits after each."""


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """Tokens to encode and what their logits must be."""

    tokens: tuple[int, ...]
    block_size: int
    digests: Mapping[str, str]

    def passes(self, name: str) -> list[Sequence[int]]:
        """What is encoded for a digest; each pass starts from position 0."""
        size = self.block_size
        if name == "text":
            return [self.tokens[i : i + size] for i in range(0, len(self.tokens), size)]
        return [self.tokens[len(self.tokens) // 2 :][:size] if name == "moved" else self.tokens[: min(4, size)]]

    def digest(self, name: str, logits: Logits) -> str:
        """The digest that ``logits`` gives; the answer is ``digests[name]``."""
        sha256 = hashlib.sha256()
        for tokens in self.passes(name):
            sha256.update(np.ascontiguousarray(logits(tokens), "<f4").tobytes())
        return sha256.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of ``selftest.json``."""
        return {"arithmetic": ARITHMETIC_VERSION, "tokens": list(self.tokens), "digests": dict(self.digests)}


def answers_of(model: ExactModel, sample_ids: Sequence[int], num_tokens: int = NUM_TOKENS) -> KnownAnswers:
    """Known answers of a model for a text of the kind that it knows, repeated where it is short."""
    tokens = [*sample_ids[:num_tokens]] or [0]
    questions = KnownAnswers(tuple((tokens * num_tokens)[:num_tokens]), model.config.block_size, {})
    return KnownAnswers(questions.tokens, questions.block_size, {name: questions.digest(name, model.text_logits) for name in NAMES})


def known_answers(selftest: Mapping[str, Any], config: GPTConfig) -> KnownAnswers | None:
    """The content of ``selftest.json``; None for a checkpoint of before. Raises CheckpointError for what is neither."""
    if "digests" not in selftest:
        return None
    tokens, digests = selftest.get("tokens"), selftest["digests"]
    if selftest.get("arithmetic") != ARITHMETIC_VERSION:
        raise CheckpointError(
            f"selftest.json is of arithmetic {selftest.get('arithmetic')!r}, this version computes in {ARITHMETIC_VERSION}"
        )
    if not isinstance(tokens, list) or not tokens or not all(type(t) is int and 0 <= t < config.vocab_size for t in tokens):
        raise CheckpointError("selftest.json must hold a list of known tokens")
    if not isinstance(digests, dict) or set(digests) != set(NAMES) or not all(isinstance(d, str) for d in digests.values()):
        raise CheckpointError(f"selftest.json must hold the digests {', '.join(NAMES)}")
    return KnownAnswers(tuple(tokens), config.block_size, digests)


def from_cases(model: ExactModel, selftest: Mapping[str, Any], num_tokens: int = NUM_UNKNOWN) -> KnownAnswers:
    """Answers for a checkpoint of before, whose ``selftest.json`` has cases of floating point: of the longest one's tokens."""
    cases = selftest.get("cases")
    prompts = [case.get("prompt") for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []
    size = model.config.vocab_size
    known = [p for p in prompts if isinstance(p, list) and all(type(t) is int and 0 <= t < size for t in p)]
    text = max(known, key=len, default=[])
    return answers_of(model, text, num_tokens)
