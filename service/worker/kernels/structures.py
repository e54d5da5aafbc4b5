"""What C and Python hand each other: the structures of engine.h, and arrays by their addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Config(ctypes.Structure):
    """``Config`` of engine.h."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            *("n_layer", "n_head", "n_embd", "head_size", "block_size", "vocab_size"),
            *("gelu", "qkv_bias", "wide", "rows", "max_items", "threads", "speculation"),
        )
    ]


class Row(ctypes.Structure):
    """``Row`` of engine.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("seed", "index")),
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")),
        *((name, ctypes.c_int32) for name in ("top_k", "num_logprobs", "token", "position", "has_bias", "has_filter")),
    ]


def int32(values: Sequence[int]) -> NDArray[np.int32]:
    """A C array of 32-bit integers."""
    return np.fromiter(values, np.int32, len(values))


def pointer(array: NDArray[np.int32] | NDArray[np.float32] | NDArray[np.float64]) -> ctypes.c_void_p:
    """The address of a contiguous array, which must outlive the call."""
    return ctypes.c_void_p(array.ctypes.data)


def address(array: NDArray[np.int32] | NDArray[np.float64] | None) -> ctypes.c_void_p:
    """The same of an array that may be missing."""
    return ctypes.c_void_p() if array is None else pointer(array)
