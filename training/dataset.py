"""Token ids of a text: in memory for a small one, else in a file that is built once and mapped; dealt out as a function of (seed, step)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.tokenizer.base import Tokenizer, TokenizerError, UnknownCharacterError
from model.tokenizer.byte import ByteTokenizer
from model.tokenizer.char import CharTokenizer
from model.uniform import uniform_tensor
from training.config import TrainConfig, TrainingError
from training.data import NUM_CODE_POINTS, Text, beginning, cache_directory, code_points

Ids = NDArray[Any]

TRAIN_FRACTION = 0.9
IN_MEMORY = 1 << 22
"""Characters up to which tokens are simply kept."""
LEAST_VALIDATION = 50
"""Tokens of validation below which a loss says nothing at all."""
PIECE = 1 << 22
"""Tokens that are looked at in one go."""


def build_tokenizer(config: TrainConfig, text: Text) -> Tokenizer:
    """The tokens of a run. BPE learns its pairs from the training part alone. Raises TrainingError."""
    if not text.characters:
        raise TrainingError(f"{text.label} is empty")
    if len(text.alphabet) == 1:
        raise TrainingError(f"{text.label} is one character over and over: there is nothing to learn from it")
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "char":
        return CharTokenizer(sorted({*text.alphabet, *(text.validation.alphabet if text.validation else ())}))
    from model.tokenizer.bpe import BPETokenizer

    characters = text.characters if text.validation else split_point(text.characters)
    try:
        return BPETokenizer.from_chunks(beginning(text, characters), config.vocab_size)
    except TokenizerError as error:
        raise TrainingError(f"--vocab-size: {error}") from None


def split_point(num_tokens: int) -> int:
    """How many of the tokens are for training; the rest is for validation."""
    return int(TRAIN_FRACTION * num_tokens)


def encode(text: Text, tokenizer: Tokenizer) -> Iterator[Ids]:
    """The token ids of a text, in parts. Raises UnknownCharacterError."""
    if isinstance(tokenizer, CharTokenizer):
        table = np.full(NUM_CODE_POINTS, -1, np.int32)
        table[code_points("".join(tokenizer.texts))] = np.arange(tokenizer.vocab_size)
        offset = 0
        for chunk in text.chunks():
            ids = table[code_points(chunk)]
            if ids.min(initial=0) < 0:
                raise UnknownCharacterError({c: [offset + i for i in at] for c, at in tokenizer.unknown(chunk).items()})
            offset += len(chunk)
            yield ids
    elif isinstance(tokenizer, ByteTokenizer):
        for chunk in text.chunks():
            yield np.frombuffer(chunk.encode(), np.uint8)
    else:
        from model.tokenizer.bpe import slices

        for part in slices(text.chunks()):
            yield np.asarray(tokenizer.encode(part))


def token_ids(text: Text, tokenizer: Tokenizer) -> Ids:
    """(N,) the token ids of a text, uint8 where they fit. Raises TrainingError, UnknownCharacterError."""
    dtype = np.uint8 if tokenizer.vocab_size <= 256 else np.int32
    if text.characters <= IN_MEMORY:
        return np.concatenate([np.empty(0, dtype), *(part.astype(dtype) for part in encode(text, tokenizer))])
    identity = [text.sha256, text.characters, tokenizer.to_json(), tokenizer.version]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_directory() / "tokens" / f"{name}.{np.dtype(dtype).name}"
    if not path.exists():
        write_tokens(path, (part.astype(dtype) for part in encode(text, tokenizer)))
    return np.memmap(path, dtype, mode="c")  # private pages: torch wants an array that could be written


def write_tokens(path: Path, parts: Iterator[Ids]) -> None:
    """Make a token file, which is there whole or not at all. Raises TrainingError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    part.tofile(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write the text's tokens to {path}: {error.strerror}; set XDG_CACHE_HOME to another place") from None


class Dataset:
    """Token ids of a text on the device that trains: for training, for finding a temperature (the end of that part), for validation."""

    def __init__(self, text: Text, tokenizer: Tokenizer, block_size: int, device: torch.device, calibration_fraction: float = 0.0) -> None:
        """Raises TrainingError for a text too short for one training window or for a loss that says anything, UnknownCharacterError."""
        ids = token_ids(text, tokenizer)
        cut = len(ids) if text.validation else split_point(len(ids))
        held = cut - int(calibration_fraction * cut)
        val = token_ids(text.validation, tokenizer) if text.validation else ids[cut:]
        if held <= block_size:
            raise TrainingError(
                f"{text.label} has {len(ids)} tokens: too few for a context of {block_size}; give a longer text or a smaller --block-size"
            )
        if len(val) <= LEAST_VALIDATION:
            raise TrainingError(
                f"{(text.validation or text).label}: {len(val)} tokens for validation are too few to say anything; give a longer text "
                f"(about {20 * LEAST_VALIDATION} characters), or another one to validate with (--val-data)"
            )
        self.train, self.calibration, self.val = (torch.from_numpy(part).to(device) for part in (ids[:held], ids[held:cut], val))
        self.num_targets = len(val) - 1
        self.num_characters, self.num_bytes = text_lengths(val[1:], tokenizer)
        self.block_size = block_size
        self.columns = torch.arange(block_size + 1, device=device)

    @property
    def tokens_per_character(self) -> float:
        """Of the validation part: what a loss per token is multiplied by to be one per character."""
        return self.num_targets / max(1, self.num_characters)

    @property
    def tokens_per_byte(self) -> float:
        """Of the validation part, in UTF-8."""
        return self.num_targets / max(1, self.num_bytes)

    def batch(self, seed: int, step: Tensor, batch_size: int, rows: range | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of a step: windows at random offsets, a function of (seed, step) alone.

        ``rows`` picks some rows of the batch, for a process or a pass that computes a part of it.
        """
        rows = rows or range(batch_size)
        index = torch.arange(rows.start, rows.stop, device=self.train.device)
        random = uniform_tensor(torch.full_like(index, seed), step * batch_size + index)
        starts = (random * (len(self.train) - self.block_size)).long()
        windows = self.train[starts[:, None] + self.columns].long()
        return windows[:, :-1], windows[:, 1:]


def text_lengths(ids: Ids, tokenizer: Tokenizer) -> tuple[int, int]:
    """Characters and bytes that tokens stand for."""
    starts = np.array([sum(byte & 0xC0 != 0x80 for byte in token) for token in tokenizer.tokens])  # of characters in UTF-8
    lengths = np.array([len(token) for token in tokenizer.tokens])
    pieces = [ids[at : at + PIECE] for at in range(0, len(ids), PIECE)]
    return sum(int(starts[piece].sum()) for piece in pieces), sum(int(lengths[piece].sum()) for piece in pieces)
