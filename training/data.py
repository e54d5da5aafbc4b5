"""The text: found or downloaded, checked, split, and dealt out in batches that are a function of (seed, step)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from torch import Tensor

from model.tokenizer.base import Tokenizer, TokenizerError
from model.tokenizer.byte import ByteTokenizer
from model.tokenizer.char import CharTokenizer
from model.uniform import uniform_tensor
from training.config import TrainConfig, TrainingError
from training.run_directory import RunDocument

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_FRACTION = 0.9


@dataclass(frozen=True, slots=True)
class Text:
    """A text and the sha256 of its bytes."""

    text: str
    sha256: str
    name: str
    path: str | None
    """As the user gave it; None for the download."""


def cache_directory() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/folio``, by default ``~/.cache/folio``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio"


def load_text(file: str | None) -> Text:
    """The text of ``file``, of ``$FOLIO_DATA``, or Tiny Shakespeare. Raises TrainingError, saying the way out."""
    chosen = file or os.environ.get("FOLIO_DATA")
    path = Path(chosen) if chosen else download()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"cannot read the text {path}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -t utf-8 {path} > new.txt") from None
    return Text(text, hashlib.sha256(data).hexdigest(), path.name, chosen)


def load_run_text(document: RunDocument, data: str | None) -> Text:
    """The text that a run was begun with: ``data``, else where it lay then, else as :func:`load_text` finds it. Raises TrainingError."""
    stored = document.data_path if document.data_path and Path(document.data_path).exists() else None
    text = load_text(data or stored)
    if text.sha256 != document.data_sha256:
        raise TrainingError(
            f"{text.path or text.name} is not the text of this run ({document.data_name}, by its sha256); pass it with --data"
        )
    return text


def download() -> Path:
    """Tiny Shakespeare, downloaded once and held against its sha256. Raises TrainingError when there is no network."""
    path = cache_directory() / "tinyshakespeare.txt"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
        return path
    try:
        response = httpx.get(URL, timeout=30, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        raise TrainingError(
            f"cannot download Tiny Shakespeare ({type(error).__name__}). Pass a text of your own with --data FILE (make train "
            f"DATA=FILE), or set FOLIO_DATA to a copy of {URL}"
        ) from None
    if hashlib.sha256(response.content).hexdigest() != SHA256:
        raise TrainingError(f"{URL} is not the text that was expected (its sha256 differs); pass a file with --data FILE")
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(response.content)
        temporary.replace(path)
    except OSError as error:
        raise TrainingError(
            f"cannot keep the downloaded text as {path}: {error.strerror}; set XDG_CACHE_HOME, or pass --data FILE"
        ) from None
    return path


def build_tokenizer(config: TrainConfig, text: Text) -> Tokenizer:
    """The tokens of a run. BPE learns its pairs from the training part alone. Raises TrainingError."""
    if not text.text:
        raise TrainingError(f"{text.path or text.name} is empty")
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "char":
        return CharTokenizer.from_text(text.text)
    from model.tokenizer.bpe import BPETokenizer

    try:
        return BPETokenizer.from_text(text.text[: split_point(len(text.text))], config.vocab_size)
    except TokenizerError as error:
        raise TrainingError(f"--vocab-size: {error}") from None


def split_point(num_tokens: int) -> int:
    """How many of the tokens are for training; the rest is for validation."""
    return int(TRAIN_FRACTION * num_tokens)


class Dataset:
    """Token ids of one text, the first 90 % for training and the rest for validation, on the device that trains."""

    def __init__(self, text: Text, tokenizer: Tokenizer, block_size: int, device: torch.device, calibration_fraction: float = 0.0) -> None:
        """Raises TrainingError for a text too short for one training window and one target, UnknownCharacterError."""
        ids = torch.tensor(tokenizer.encode(text.text), dtype=torch.uint8 if tokenizer.vocab_size <= 256 else torch.int32)
        cut = split_point(len(ids))
        if cut <= block_size or len(ids) - cut < 2:
            raise TrainingError(
                f"{text.path or text.name} has {len(ids)} tokens: too few for a context of {block_size}; "
                f"give a longer text or a smaller --block-size"
            )
        held = cut - int(calibration_fraction * cut)
        self.train, self.calibration, self.val = (part.to(device) for part in (ids[:held], ids[held:cut], ids[cut:]))
        self.tokens_per_character = (len(self.val) - 1) / max(1, len(tokenizer.decode(self.val[1:].tolist())))
        self.block_size = block_size
        self.columns = torch.arange(block_size + 1, device=device)

    def batch(self, seed: int, step: Tensor, batch_size: int, rows: range | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of a step: windows at random offsets, a function of (seed, step) alone.

        ``rows`` picks some rows of the batch, for a process that computes a part of it.
        """
        rows = rows or range(batch_size)
        index = torch.arange(rows.start, rows.stop, device=self.train.device)
        random = uniform_tensor(torch.full_like(index, seed), step * batch_size + index)
        starts = (random * (len(self.train) - self.block_size)).long()
        windows = self.train[starts[:, None] + self.columns].long()
        return windows[:, :-1], windows[:, 1:]
