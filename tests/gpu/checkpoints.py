"""Models to prove the kernels with: random ones of many shapes, and some that hold the worst that a checkpoint may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import GPTConfig
from model.exact.network import ExactModel
from service.worker.cuda.launches import Plan

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Model:
    """Weights and the shape they are for."""

    plan: Plan
    tensors: Tensors

    @property
    def config(self) -> GPTConfig:
        """The shape."""
        return self.plan.config

    def reference(self) -> ExactModel:
        """The oracle."""
        return ExactModel(self.config, self.tensors)


def random_model(seed: int, *, wide: bool = False, plan: dict[str, int] | None = None, **shape: Any) -> Model:
    """Weights of a size that makes every part of the network count. ``plan``: other limits than the usual ones."""
    config = GPTConfig(**{"n_layer": 2, "block_size": 64, "arithmetic": "w8a16" if wide else "w8a8"} | shape)
    g = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, size in config.parameter_shapes.items():
        if "embedding" in name:
            tensors[name] = g.normal(0, 0.4, size).astype(np.float32)
        elif len(size) == 2:
            tensors[name] = g.normal(0, 1.5 / size[1] ** 0.5, size).astype(np.float32)
        else:
            tensors[name] = g.normal(float("ln_" in name and name.endswith("weight")), 0.1, size).astype(np.float32)
    tensors["lm_head.weight"][1] = 0
    return Model(Plan(config, **plan or {}), tensors)


def nasty_model(seed: int, **shape: Any) -> Model:
    """Outliers, rows of zeros, subnormal and tiny rows, huge parameters, a head without values, a saturated residual stream."""
    model = random_model(seed, **shape)
    g = np.random.default_rng(seed)
    t = model.tensors
    for name, weight in t.items():
        weight[...] = g.normal(0, 0.3, weight.shape)
        if weight.ndim == 2 and "embedding" not in name:
            weight[0] = 0
            weight[1] *= np.float32(1e-41)
            weight[2] *= np.float32(1e-20)
            weight[3, 0] = 500
        else:
            weight.flat[::7] *= np.float32(1e-39)
    t["blocks.0.mlp.down.bias"][:2] = 60000, -60000
    t["ln_f.weight"][:] *= np.float32(1e-9) if seed % 2 else np.float32(1e4)
    first = 2 * model.config.attn_width
    t["blocks.0.attn.qkv.weight"][first : first + model.config.head_size] = 0
    if seed == 3:
        t["ln_f.weight"][:], t["ln_f.bias"][:] = 0, 0
    return model
