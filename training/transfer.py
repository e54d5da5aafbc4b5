"""Begin with the weights of a checkpoint: its shape and tokens become the run's, and a vocabulary may grow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.loading import LoadedCheckpoint
from model.gpt import GPT
from model.tokenizer.base import Tokenizer
from model.tokenizer.char import CharTokenizer
from training.config import TrainConfig, TrainingError
from training.data import Text
from training.dataset import build_tokenizer

SHAPE = ("n_layer", "n_head", "n_embd", "qkv_bias", "activation")
PER_TOKEN = ("token_embedding.weight", "lm_head.weight", "lm_head.bias")
"""Tensors with one row for each token."""
CARRIED = ("start", "chat_template", "special_tokens")
"""Of a checkpoint's manifest: what a run that begins with its weights says too."""


def origin_of(source: LoadedCheckpoint) -> dict[str, Any]:
    """Where a run's weights come from, for its manifests."""
    named = {"start": "\n", **source.manifest}
    return {"id": source.id, "steps": source.manifest.get("steps"), **{name: named[name] for name in CARRIED if name in named}}


def adopt(config: TrainConfig, source: LoadedCheckpoint, given: Collection[str]) -> TrainConfig:
    """``config`` with the checkpoint's shape and tokens. Raises TrainingError where a given field says otherwise."""
    shape: dict[str, Any] = {name: getattr(source.config, name) for name in SHAPE}
    for name, value in shape.items():
        if name in given and getattr(config, name) != value:
            raise TrainingError(
                f"--{name.replace('_', '-')} {getattr(config, name)} does not fit the checkpoint, which has {value}: leave it out"
            )
    block_size = config.block_size if "block_size" in given else source.config.block_size
    if block_size > source.config.block_size:
        raise TrainingError(f"--block-size {block_size} is more than the {source.config.block_size} positions that the checkpoint knows")
    if "tokenizer" not in given:
        shape["tokenizer"] = source.tokenizer.kind
        if source.tokenizer.kind == "bpe":
            shape["vocab_size"] = source.tokenizer.vocab_size
    return replace(config, block_size=block_size, **shape)


def extend_vocabulary(config: TrainConfig, source: LoadedCheckpoint, text: Text) -> Tokenizer:
    """The checkpoint's tokens, then the characters of the text that it does not know; another kind of tokens if the run asks for one."""
    if config.tokenizer != source.tokenizer.kind:
        return build_tokenizer(config, text)
    if not isinstance(source.tokenizer, CharTokenizer):
        return source.tokenizer
    known = source.tokenizer.texts
    alphabet = {*text.alphabet, *(text.validation.alphabet if text.validation else ())}
    return CharTokenizer([*known, *sorted(alphabet - set(known))])


@torch.no_grad()
def transfer(source: LoadedCheckpoint, model: GPT, tokenizer: Tokenizer) -> None:
    """Fill ``model`` with the weights of ``source``.

    A token that both know (the same bytes) keeps its embedding, its row of the head and its bias; a new one begins as the mean of all that
    the checkpoint has, a token like any other (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
    """
    weights = source.model.state_dict()
    known = {token: i for i, token in enumerate(source.tokenizer.tokens)}
    pairs = [(ours, known[token]) for ours, token in enumerate(tokenizer.tokens) if token in known]
    ours, theirs = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    filled: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        weight = weights[name].to(own.device)
        if name in PER_TOKEN:
            filled[name] = weight.mean(0).expand(own.shape).clone()
            filled[name][ours.to(own.device)] = weight[theirs.to(own.device)]
        else:
            filled[name] = weight[: len(own)]  # fewer positions, where the run's context is shorter
    model.load_state_dict(filled)
