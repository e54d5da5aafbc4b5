"""Drives kernel.c. Prefill and decode are the same code there, so a replayed token needs no path of its own."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.files import Checkpoint
from model.params import SamplingParams
from service.worker.kernels.build import NativeUnavailable, load
from service.worker.runners.interface import DecodeSlot, PrefillChunk, SampledTokens

MAX_ENCODE = 128  # tokens of one forward pass: enough for full register tiles, little enough to stay in the cache
MAX_HEAD_SIZE = 1024  # kernel.c keeps a query on its stack


class Config(ctypes.Structure):
    """``Config`` of kernel.c."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in [
            "n_layer",
            "n_head",
            "n_embd",
            "head_size",
            "block_size",
            "vocab_size",
            "gelu",
            "qkv_bias",
            "rows",
            "max_items",
            "threads",
        ]
    ]


class Row(ctypes.Structure):
    """``Row`` of kernel.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("seed", "index")),
        *((name, ctypes.c_double) for name in ["temperature", "top_p", "min_p", "repetition", "frequency", "presence"]),
        *((name, ctypes.c_int32) for name in ["top_k", "num_logprobs", "token", "position", "has_bias", "has_filter"]),
    ]


def int32(values: Sequence[int]) -> NDArray[np.int32]:
    """A C array of 32-bit integers."""
    return np.fromiter(values, np.int32, len(values))


def pointer(array: NDArray[np.int32] | NDArray[np.float32] | NDArray[np.float64]) -> ctypes.c_void_p:
    """The address of a contiguous array, which must outlive the call."""
    return ctypes.c_void_p(array.ctypes.data)


class NativeRunner:
    """A `Runner` on the CPU, in C."""

    device = "cpu"

    def __init__(self, checkpoint: Checkpoint, *, rows: int, dtype: str, threads: int, cache: Path) -> None:
        config = checkpoint.config
        if config.head_size > MAX_HEAD_SIZE:
            raise NativeUnavailable(f"heads of {config.head_size} are larger than the native kernels' {MAX_HEAD_SIZE}")
        library = load(dtype, cache)
        self.rows, self.chunk_size, self.dtype = rows, 64, dtype
        self.kernels = f"native-{library.identity}"
        self.vocab_size = config.vocab_size
        self.max_items = max(rows, MAX_ENCODE)
        self.lib = library.handle
        self.declare()
        tensors = [np.ascontiguousarray(checkpoint.tensors[name]) for name in config.parameter_shapes]
        addresses = (ctypes.c_void_p * len(tensors))(*(tensor.ctypes.data for tensor in tensors))
        c_config = Config(
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.head_size,
            config.block_size,
            config.vocab_size,
            config.activation == "gelu_tanh",
            config.qkv_bias,
            rows,
            self.max_items,
            threads,
        )
        self.engine = ctypes.c_void_p(self.lib.folio_create(ctypes.byref(c_config), addresses))
        if self.engine.value is None:
            raise MemoryError(f"no memory for a cache of {rows} rows; lower --max-batch")
        self.memory_bytes = int(self.lib.folio_cache_bytes(self.engine))
        self.num_logprobs = [-1] * rows

    def declare(self) -> None:
        """Return types; arguments are passed as explicit C types."""
        self.lib.folio_create.restype = ctypes.c_void_p
        self.lib.folio_cache_bytes.restype = ctypes.c_int64
        for name in ("folio_destroy", "folio_set_row", "folio_set_cursor", "folio_encode", "folio_decode"):
            getattr(self.lib, name).restype = None

    def set_row(self, row: int, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """See `Runner`."""
        self.num_logprobs[row] = -1 if params.num_logprobs is None else min(params.num_logprobs, self.vocab_size)
        c_row = Row(
            params.seed,
            len(generated),
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
            min(params.top_k, 2**31 - 1),
            self.num_logprobs[row],
            0,
            0,
            bool(params.logit_bias),
            params.has_filter,
        )
        ids, bias = int32([t for t, _ in params.logit_bias]), np.array([b for _, b in params.logit_bias], np.float64)
        before, after = int32(prompt), int32(generated)
        self.lib.folio_set_row(
            self.engine,
            row,
            ctypes.byref(c_row),
            len(ids),
            pointer(ids),
            pointer(bias),
            len(before),
            pointer(before),
            len(after),
            pointer(after),
        )

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """See `Runner`."""
        batch: list[PrefillChunk] = []
        for chunk in chunks:
            if sum(len(p.tokens) for p in batch) + len(chunk.tokens) > self.max_items:
                self.forward(batch)
                batch = []
            batch.append(chunk)
        if batch:
            self.forward(batch)

    def forward(self, chunks: Sequence[PrefillChunk], logits: NDArray[np.float32] | None = None) -> None:
        """One pass over the tokens of all chunks."""
        tokens = int32([token for chunk in chunks for token in chunk.tokens])
        rows = int32([chunk.row for chunk in chunks for _ in chunk.tokens])
        at = int32([chunk.start + i for chunk in chunks for i in range(len(chunk.tokens))])
        out = ctypes.c_void_p() if logits is None else pointer(logits)
        self.lib.folio_encode(self.engine, len(tokens), pointer(tokens), pointer(rows), pointer(at), out)

    def decode(self, slots: Sequence[DecodeSlot]) -> list[SampledTokens]:
        """See `Runner`."""
        for slot in slots:
            self.lib.folio_set_cursor(self.engine, slot.row, slot.token, slot.position)
        rows, steps = int32([c.row for c in slots]), int32([c.num_steps for c in slots])
        most = int(steps.max())
        out, work = np.zeros((len(rows), most), np.int32), np.zeros(4 * len(rows), np.int32)
        widest = max(self.num_logprobs[c.row] for c in slots)
        logprobs = np.zeros((len(rows), most, 1 + 2 * max(widest, 0)), np.float64) if widest >= 0 else None
        address = ctypes.c_void_p() if logprobs is None else pointer(logprobs)
        stride = 0 if logprobs is None else logprobs.shape[2]
        self.lib.folio_decode(self.engine, len(rows), pointer(rows), pointer(steps), most, pointer(out), address, stride, pointer(work))
        tokens = out.tolist()
        return [
            SampledTokens(tokens[i][: c.num_steps], None if logprobs is None else self.read_logprobs(logprobs[i, : c.num_steps], c.row))
            for i, c in enumerate(slots)
        ]

    def read_logprobs(self, values: NDArray[np.float64], row: int) -> list[tuple[float, list[tuple[int, float]]]] | None:
        """The kernel's (chosen, id, value, id, value, …) as tuples."""
        count = self.num_logprobs[row]
        if count < 0:
            return None
        return [(v[0], [(int(v[1 + 2 * i]), v[2 + 2 * i]) for i in range(count)]) for v in values.tolist()]

    def next_logits(self, row: int, tokens: Sequence[int]) -> list[float]:
        """See `Runner`."""
        self.prefill([PrefillChunk(row, i, tokens[i : i + self.chunk_size]) for i in range(0, len(tokens) - 1, self.chunk_size)])
        logits = np.zeros((1, self.vocab_size), np.float32)
        self.forward([PrefillChunk(row, len(tokens) - 1, tokens[-1:])], logits)
        values: list[float] = logits[0].tolist()
        assert all(map(math.isfinite, values)), "the kernel computed a logit that is not finite"
        return values

    def close(self) -> None:
        """See `Runner`."""
        self.lib.folio_destroy(self.engine)
        self.engine = ctypes.c_void_p()
