"""The models of the golden texts: the shipped checkpoint, and small ones made of hashes, equal for ever on every machine."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from model.checkpoint.files import CONFIG, MODEL, SELFTEST, TOKENIZER, Checkpoint, dump_json, read_checkpoint, write_checkpoint
from model.config import GPTConfig
from model.exact.digests import answers_of
from model.exact.network import ExactModel
from model.exact.probes import mix
from model.tokenizer.base import Tokenizer
from model.tokenizer.bpe import BYTES, BPETokenizer
from model.tokenizer.byte import ByteTokenizer
from model.tokenizer.char import CharTokenizer

SHIPPED = Path(__file__).parents[2] / "model" / "pretrained"
CHARACTERS = "\n !',-.:;?ABIabcdefghiklmnoprstuvwy"
MERGES = ["t h", "th e", "Ġ the", "i n", "a n", "an d", "e r", "o u", "Ġ s", "in g", "Ã ©", "c h", "ou l", "oul d", "Ġ w"]


def bpe() -> BPETokenizer:
    """Bytes and fifteen merges, written out: no training that another version of a library might do differently."""
    vocabulary = {**BYTES, **{merge.replace(" ", ""): 256 + i for i, merge in enumerate(MERGES)}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return BPETokenizer.from_json(
        {
            "tokenizer": {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": byte_level,
                "decoder": byte_level,
                "model": {"type": "BPE", "vocab": vocabulary, "merges": MERGES},
            }
        }
    )


MODELS: dict[str, tuple[Tokenizer, GPTConfig]] = {
    "char": (CharTokenizer(CHARACTERS), GPTConfig(vocab_size=len(CHARACTERS), block_size=24, n_layer=2, n_head=3, n_embd=20)),
    "byte": (
        ByteTokenizer(),
        GPTConfig(vocab_size=256, block_size=32, n_layer=2, n_head=2, n_embd=36, qkv_bias=True, activation="gelu_tanh", arithmetic="w8a16"),
    ),
    "bpe": (bpe(), GPTConfig(vocab_size=271, block_size=40, n_layer=3, n_head=5, n_embd=64, activation="gelu_tanh")),
    "wide": (CharTokenizer(CHARACTERS), GPTConfig(vocab_size=35, block_size=17, n_layer=1, n_head=4, n_embd=70, arithmetic="w8a16")),
}
NAMES = ("shipped", *MODELS)


def hashed_weights(config: GPTConfig) -> dict[str, NDArray[np.float32]]:
    """Uniform weights of about the size that training gives, from a hash of their place; LayerNorm's around 1 and 0."""
    tensors, offset = {}, 0
    for name, shape in config.parameter_shapes.items():
        place = np.arange(offset, offset + math.prod(shape), dtype=np.uint64)
        uniform = (mix(mix(place + np.uint64(1))) >> 11).astype(np.float64) * 2.0**-52 - 1.0
        norm = "ln_" in name and name.endswith("weight")
        scale = 0.3 if len(shape) == 1 else 1.5 if "embedding" in name else 3.0 / math.sqrt(shape[1])
        tensors[name] = (uniform * scale + norm).astype(np.float32).reshape(shape)
        offset += len(place)
    return tensors


def write_golden_checkpoint(name: str, path: Path) -> None:
    """The directory of one of `MODELS`."""
    tokenizer, config = MODELS[name]
    tensors = hashed_weights(config)
    text = [i * i % config.vocab_size for i in range(1, 257)]
    files = {
        MODEL: safetensors.numpy.save(tensors),
        CONFIG: dump_json(config.to_json()),
        TOKENIZER: dump_json(tokenizer.to_json()),
        SELFTEST: dump_json(answers_of(ExactModel(config, tensors), text).to_json()),
    }
    write_checkpoint(path, files, {"start": "\n", "name": name})


def golden_checkpoint(name: str, folder: Path) -> Checkpoint:
    """One of `NAMES`, written into ``folder`` where it is not the shipped one."""
    if name == "shipped":
        return read_checkpoint(SHIPPED)
    if not (folder / name).exists():
        write_golden_checkpoint(name, folder / name)
    return read_checkpoint(folder / name)
