"""Small random models with what a checkpoint may hold at worst: outliers, rows of zeros, tiny and subnormal weights, full scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import GPTConfig


@dataclass(frozen=True)
class RandomModel:
    """As much of a checkpoint as a model needs."""

    name: str
    config: GPTConfig
    tensors: dict[str, NDArray[np.float32]]


CONFIGS = {
    "gelu": GPTConfig(vocab_size=131, block_size=96, n_layer=2, n_head=3, n_embd=100, qkv_bias=True, activation="gelu_tanh"),
    "one head": GPTConfig(vocab_size=70, block_size=70, n_layer=3, n_head=1, n_embd=64),
    "odd": GPTConfig(vocab_size=33, block_size=64, n_layer=1, n_head=5, n_embd=29),
    "wide gelu": GPTConfig(
        vocab_size=257, block_size=48, n_layer=2, n_head=2, n_embd=136, qkv_bias=True, activation="gelu_tanh", arithmetic="w8a16"
    ),
    "wide relu": GPTConfig(vocab_size=40, block_size=40, n_layer=2, n_head=3, n_embd=48, arithmetic="w8a16"),
    "long": GPTConfig(vocab_size=17, block_size=700, n_layer=1, n_head=2, n_embd=160),
}


def random_model(name: str, seed: int = 0) -> RandomModel:
    """One of `CONFIGS` with hostile weights. Every product, sum and scale of it still has to be exact."""
    config, rng = CONFIGS[name], np.random.default_rng([seed, len(name)])
    tensors = {key: rng.normal(0, 0.3, shape).astype(np.float32) for key, shape in config.parameter_shapes.items()}
    for key, w in tensors.items():
        if w.ndim == 2 and "embedding" not in key:
            w[0] = 0
            w[1] *= np.float32(1e-41)
            w[2] *= np.float32(1e-20)
            w[3, 0] = 500
        else:
            w.flat[::7] *= np.float32(1e-39)
    if name == "one head":  # outliers: the residual stream meets its bound
        tensors["blocks.0.mlp.down.bias"][5:7] = 60000, -60000
    if name == "odd":  # a head without values
        width = config.attn_width
        tensors["blocks.0.attn.qkv.weight"][2 * width : 2 * width + config.head_size] = 0
    if name == "long":
        tensors["ln_f.weight"] *= np.float32(1e4)
        tensors["ln_f.bias"] *= np.float32(1e-9)
    return RandomModel(name, config, tensors)


def calm_model(config: GPTConfig, seed: int = 0, scale: float = 0.3) -> RandomModel:
    """Weights of one size, so that 8 bits lose little: for comparisons with floating point, and for lively text."""
    rng = np.random.default_rng(seed)
    tensors = {key: rng.normal(0, scale, shape).astype(np.float32) for key, shape in config.parameter_shapes.items()}
    for key in tensors:
        if ".ln_" in key or key.startswith("ln_f"):
            tensors[key] = np.ones_like(tensors[key]) if key.endswith("weight") else np.zeros_like(tensors[key])
    return RandomModel("calm", config, tensors)
