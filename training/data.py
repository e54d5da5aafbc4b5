"""The text: found or downloaded, checked, split, and dealt out in batches that are a function of (seed, step)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from torch import Tensor

from model.sampling import uniform_tensor
from model.tokenizer import CharTokenizer
from training.config import TrainingError

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_FRACTION = 0.9


@dataclass(frozen=True, slots=True)
class Text:
    """A text and the sha256 of its bytes."""

    text: str
    sha256: str
    name: str


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
    return Text(text, hashlib.sha256(data).hexdigest(), path.name)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(response.content)
    temporary.replace(path)
    return path


class Dataset:
    """Token ids of one text, the first 90 % for training and the rest for validation, on the device that trains."""

    def __init__(self, text: str, tokenizer: CharTokenizer, block_size: int, device: torch.device) -> None:
        ids = torch.tensor(tokenizer.encode(text), dtype=torch.uint8 if tokenizer.vocab_size <= 256 else torch.int32)
        cut = int(TRAIN_FRACTION * len(ids))
        if cut <= block_size or len(ids) - cut < 2:
            raise TrainingError(f"the text has {len(ids)} tokens: too few for a context of {block_size}; lower --block-size")
        self.train, self.val = ids[:cut].to(device), ids[cut:].to(device)
        self.block_size = block_size
        self.columns = torch.arange(block_size + 1, device=device)

    def batch(self, seed: int, step: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of a step: windows at random offsets, a function of (seed, step) alone."""
        rows = torch.arange(batch_size, device=self.train.device)
        random = uniform_tensor(torch.full_like(rows, seed), step * batch_size + rows)
        starts = (random * (len(self.train) - self.block_size)).long()
        windows = self.train[starts[:, None] + self.columns].long()
        return windows[:, :-1], windows[:, 1:]
