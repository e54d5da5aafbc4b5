"""A checkpoint of GPT-2's shape with random weights: how long a step takes does not depend on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.checkpoint.files import Checkpoint
from model.config import GPTConfig
from model.tokenizer.byte import ByteTokenizer

VOCABULARY = 50_257


def gpt2_shape(*, vocab_size: int = VOCABULARY, n_layer: int = 12) -> Checkpoint:
    """GPT-2 124M, or with another vocabulary or fewer layers. It reads no text: prompts are token ids."""
    config = GPTConfig(
        vocab_size=vocab_size, block_size=1024, n_layer=n_layer, n_head=12, n_embd=768, qkv_bias=True, activation="gelu_tanh"
    )
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in config.parameter_shapes.items()}
    return Checkpoint(Path("gpt2-shape"), "sha256:", config, ByteTokenizer(), 0, {}, {}, tensors)
