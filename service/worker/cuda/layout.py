"""What lies where in the card's memory: a checkpoint's weights as integers in kernel.cu's order, and everything that the kernels write.

Letters as in kernel.cu: L layers, C n_embd, H heads, D head size, A = H·D, F = 4·C, T positions, V vocabulary, M items.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import GPTConfig
from model.exact import arithmetic
from service.worker.cuda.launches import SEGMENT, TILE, Plan, parts

LAYER = [
    *("qkv", "project", "up", "down"),
    *("qkv_scale", "qkv_bias", "project_scale", "project_bias", "up_scale", "up_bias", "down_scale", "down_bias"),
    *("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias"),
]
"""The pointers of kernel.cu's `Layer`, in its order."""
POINTERS = [
    *("layers", "tokens", "positions", "lnf_weight", "lnf_bias", "head", "head_scale", "head_bias"),
    *("keys", "values", "key_scales", "value_scales"),
    *("x", "y", "queries", "query_scales", "attended", "hidden", "logits"),
    *("weights", "weight_sums", "plain_sums", "tile_most", "tile_best", "tile_logit"),
    *("rows", "bias", "in_prompt", "counts", "row", "token", "position", "draft", "limit", "drawn", "out", "logprobs"),
]
"""Those of `Args`."""
ROW = np.dtype(
    [
        *((name, "i8") for name in ("seed", "index")),
        *((name, "f8") for name in ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")),
        *((name, "i4") for name in ("top_k", "num_logprobs")),
    ]
)
"""`Row`."""
Array = NDArray[Any]


class Args(ctypes.Structure):
    """`Args` of kernel.cu: what every kernel is called with."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int) for name in ("num_rows", "num_items", "steps", "verifying")),
        ("root", ctypes.c_float),
    ]


class Space(NamedTuple):
    """An array of the card's memory."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * int(np.dtype(self.dtype).itemsize)


def tiled(weight: Array) -> Array:
    """(N, K) integers → int8 tiles (N/32, K/16, 32, 16), padded with zeros to whole pairs of tiles."""
    n, k = weight.shape
    padded = np.zeros((parts(n, 2 * TILE) * 2 * TILE, parts(k, 16) * 16), np.int8)
    padded[:n, :k] = weight
    return np.ascontiguousarray(padded.reshape(-1, TILE, padded.shape[1] // 16, 16).transpose(0, 2, 1, 3))


def by_head(array: Array, plan: Plan) -> Array:
    """(3·H·D, …) outputs of q, k and v → (H·padded, …): all three of a head side by side, padded to whole tiles."""
    c, rest = plan.config, array.shape[1:]
    heads = array.reshape(3, c.n_head, c.head_size, *rest).swapaxes(0, 1).reshape(c.n_head, 3 * c.head_size, *rest)
    padded = np.zeros((c.n_head, plan.head_outputs, *rest), array.dtype)
    padded[:, : 3 * c.head_size] = heads
    return padded.reshape(c.n_head * plan.head_outputs, *rest)


def weights(tensors: Mapping[str, Array], plan: Plan) -> dict[str, Array]:
    """Name → array: what never changes. Those of a layer are called ``0.qkv`` and so on."""
    c = plan.config
    out: dict[str, Array] = {}

    def linear(key: str, name: str, *, heads: bool = False) -> None:
        weight, scale = arithmetic.quantise(tensors[name + ".weight"])
        bias = arithmetic.parameter(tensors.get(name + ".bias", np.zeros(len(weight), np.float32)))
        arrays: list[Array] = [weight.astype(np.int8), scale[:, 0], bias]
        if heads:
            arrays = [by_head(array, plan) for array in arrays]
        out[key], out[key + "_scale"], out[key + "_bias"] = tiled(arrays[0]), arrays[1], arrays[2]

    def norm(key: str, name: str) -> None:
        for part in ("weight", "bias"):
            out[f"{key}_{part}"] = arithmetic.parameter(tensors[f"{name}.{part}"])

    for key in ("tokens", "positions"):
        out[key] = arithmetic.embedding(tensors[key.removesuffix("s") + "_embedding.weight"]).astype(np.int32)
    for i in range(c.n_layer):
        linear(f"{i}.qkv", f"blocks.{i}.attn.qkv", heads=True)
        linear(f"{i}.project", f"blocks.{i}.attn.proj")
        linear(f"{i}.up", f"blocks.{i}.mlp.up")
        linear(f"{i}.down", f"blocks.{i}.mlp.down")
        norm(f"{i}.ln1", f"blocks.{i}.ln_1")
        norm(f"{i}.ln2", f"blocks.{i}.ln_2")
    norm("lnf", "ln_f")
    linear("head", "lm_head")
    return out


def spaces(plan: Plan, rows: int, items: int, steps: int) -> dict[str, Space]:
    """Name → array that the kernels write or the host changes: the cache, what passes between kernels, the sampler, the items."""
    c = plan.config
    words, padded, lines = parts(c.head_size, 4), parts(c.block_size, 4) * 4, c.n_layer * rows * c.n_head
    v, segments, tiles = c.vocab_size, parts(c.vocab_size, SEGMENT), parts(c.vocab_size, TILE)
    large = 0 if plan.small_vocabulary else items
    item = {name: Space((items,), "i4") for name in ("row", "token", "position", "draft", "limit", "drawn")}
    return item | {
        "keys": Space((lines, words * padded * 4), "u1"),
        "values": Space((lines, padded * c.head_size), "u1"),
        "key_scales": Space((lines, c.block_size), "f4"),
        "value_scales": Space((lines, c.block_size), "f4"),
        "x": Space((items, c.n_embd), "i4"),
        "y": Space((items, c.n_embd), "i4"),
        "queries": Space((items, c.n_head * words * 4), "u1"),
        "query_scales": Space((items, c.n_head), "f4"),
        "attended": Space((items, c.attn_width), "f4"),
        "hidden": Space((items, 4 * c.n_embd), "f4"),
        "logits": Space((items, v), "f4"),
        "weights": Space((large, v), "i8"),
        "weight_sums": Space((large, segments), "i8"),
        "plain_sums": Space((large, segments), "i8"),
        "tile_most": Space((large, tiles), "f8"),
        "tile_best": Space((large, tiles), "i4"),
        "tile_logit": Space((large, tiles), "f4"),
        "rows": Space((rows,), ROW),
        "bias": Space((rows, v), "f8"),
        "in_prompt": Space((rows, v), "u1"),
        "counts": Space((rows, v), "i4"),
        "out": Space((items, steps), "i4"),
        "logprobs": Space((items, steps, 1 + 2 * plan.most_logprobs), "f8"),
    }


def root(config: GPTConfig) -> float:
    """D^-0.5, as float32."""
    return float(arithmetic.root(config.head_size))
