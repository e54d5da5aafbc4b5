"""Models so small that a text of thousands of characters takes no time, in a directory as an admin would keep them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.files import write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.checkpoint.manifest import read_manifest
from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer.base import Tokenizer
from model.tokenizer.char import CharTokenizer

TEXT = "\n abcdefghij"
BLOCK = 32


@dataclass(frozen=True)
class Catalogue:
    """``a`` and ``b`` serve; ``damaged`` is ``a`` with other weights than its manifest says."""

    directory: Path
    ids: dict[str, str]

    def __getitem__(self, name: str) -> str:
        return self.ids[name]

    def path(self, name: str) -> Path:
        return self.directory / name


def make_checkpoint(
    path: Path, seed: int = 11, *, tokenizer: Tokenizer | None = None, block_size: int = BLOCK, manifest: dict[str, Any] | None = None
) -> Path:
    """Random weights, large enough that the next token is neither certain nor left to chance alone; heads of 10 (no whole vector)."""
    tokenizer = tokenizer or CharTokenizer(TEXT)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=block_size, n_layer=2, n_head=3, n_embd=32, dropout=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    ids = torch.randint(0, tokenizer.vocab_size, (BLOCK,)).tolist()
    write_checkpoint(path, checkpoint_files(model.eval(), tokenizer, ids), manifest or {"start": "\n", "name": path.name})
    return path


def make_catalogue(directory: Path) -> Catalogue:
    for seed, name in enumerate("ab"):
        make_checkpoint(directory / name, seed)
    shutil.copytree(directory / "a", directory / "damaged")
    manifest = directory / "damaged" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"name": "a"', b'"name": "d"'))
    weights = directory / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"12345678")
    return Catalogue(directory, {name: read_manifest(directory / name).id for name in ("a", "b", "damaged")})
