"""Checkpoints of before get what today's have: digests of their logits, and the arithmetic that they are served in."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint.files import CONFIG, SELFTEST, dump_json, read_checkpoint, read_verified, write_checkpoint
from model.checkpoint.loading import load_checkpoint
from model.checkpoint.manifest import read_manifest
from model.config import Arithmetic
from model.draft import FILE as DRAFT
from model.exact.digests import NUM_TOKENS, from_cases, known_answers
from model.exact.network import ExactModel
from training.config import TrainingError
from training.data import load_text
from training.dataset import Dataset
from training.exact_loss import choose_arithmetic
from training.run_directory import writing


def upgrade_checkpoint(source: Path, out: Path, data_files: Sequence[str] | None = None) -> str:
    """Write a copy with digests; its id. Weights and tokenizer stay as they are. Raises TrainingError, CheckpointError.

    With a text, activations get the fewest bits that cost nothing on it; without, an imported model gets 16.
    """
    checkpoint = read_checkpoint(source)
    if known_answers(checkpoint.selftest, checkpoint.config) is not None:
        raise TrainingError(f"{source} has its digests already: there is nothing to upgrade")
    arithmetic: Arithmetic = "w8a16" if "imported" in checkpoint.manifest else checkpoint.config.arithmetic
    measured: dict[str, float] = {}
    if data_files:
        arithmetic, measured["exact_cost"] = measure(source, data_files)
    config = replace(checkpoint.config, arithmetic=arithmetic)
    answers = from_cases(ExactModel(config, checkpoint.tensors), checkpoint.selftest, NUM_TOKENS)
    files = read_verified(read_manifest(source)) | {CONFIG: dump_json(config.to_json()), SELFTEST: dump_json(answers.to_json())}
    manifest = {name: value for name, value in checkpoint.manifest.items() if name not in ("format", "files")}
    with writing(out):
        write_checkpoint(out, files, manifest | measured | {"upgraded_from": checkpoint.id})
        if (source / DRAFT).exists():  # counts of tokens, which are no part of the id
            shutil.copyfile(source / DRAFT, out / DRAFT)
    return read_checkpoint(out).id


def measure(source: Path, data_files: Sequence[str]) -> tuple[Arithmetic, float]:
    """The arithmetic that fits a checkpoint on a text, and what it costs in nats per token."""
    checkpoint = load_checkpoint(source)
    data = Dataset(load_text(data_files), checkpoint.tokenizer, checkpoint.config.block_size, torch.device("cpu"))
    arithmetic, cost = choose_arithmetic(checkpoint.model, data.val)
    return arithmetic, round(cost, 6)
