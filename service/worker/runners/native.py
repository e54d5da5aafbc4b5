"""Drives kernels/kernel.c. Prefill, decode and any mixture of them are the same code there, and give the same bits."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.files import Checkpoint
from model.draft import Draft
from model.params import SamplingParams
from service.worker.kernels.build import NativeUnavailable, instruction_sets, load
from service.worker.kernels.structures import Config, Row, address, int32, pointer
from service.worker.runners.interface import (
    DecodeSlot,
    PrefillChunk,
    PrefixCopy,
    RunnerUnavailable,
    SampledTokens,
    Speculation,
    TokenLogprobs,
)

MAX_PREFILL = 128
"""Tokens of one step: enough for full register tiles, few enough to stay in the processor's cache."""
TURN_SIZES = (16, 8)
TURN_STEPS = 8
SLOW_STEP_S = 0.002
"""A step of one row that takes longer is bound by reading weights, which rows share: then all of them decode together."""


def items_of(chunks: Sequence[PrefillChunk]) -> list[tuple[int, int, int]]:
    """(row, position, token) of every token."""
    return [(chunk.row, chunk.start + i, token) for chunk in chunks for i, token in enumerate(chunk.tokens)]


def guesses_of(slots: Sequence[DecodeSlot], most: int) -> NDArray[np.int32] | None:
    """(slots, most): what is guessed of each slot's tokens, -1 where nothing is; None if nothing is anywhere."""
    if not any(slot.guesses for slot in slots):
        return None
    hints = np.full((len(slots), most), -1, np.int32)
    for row, slot in zip(hints, slots, strict=True):
        row[: len(slot.guesses)] = slot.guesses[: slot.num_steps]
    return hints


def choose(library: ctypes.CDLL, cpu: str) -> str:
    """The instruction set that ``cpu`` asks for, or the best that library and processor have. Raises RunnerUnavailable."""
    library.folio_supports.argtypes = [ctypes.c_char_p]
    names = [name for name in instruction_sets() if hasattr(library, f"folio_create_{name}") and library.folio_supports(name.encode())]
    if cpu == "auto":
        return names[0]
    if cpu not in names:
        raise RunnerUnavailable(f"cpu {cpu}: this machine has no kernels for it; it has {', '.join(names)}")
    return cpu


class Kernel:
    """The library's functions for one instruction set. Raises RunnerUnavailable."""

    def __init__(self, cpu: str = "auto") -> None:
        try:
            library = self.library = load()
        except NativeUnavailable as error:
            raise RunnerUnavailable(str(error)) from None
        self.cpu = choose(library, cpu)

        def function(name: str, result: type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_uint64] | None = None) -> Callable[..., int]:
            found: Callable[..., int] = getattr(library, f"folio_{name}_{self.cpu}")
            found.restype = result  # type: ignore[attr-defined]
            return found

        self.create, self.destroy = function("create", ctypes.c_void_p), function("destroy")
        self.cache_bytes = function("cache_bytes", ctypes.c_int64)
        self.set_row, self.set_cursor, self.copy_prefix = function("set_row"), function("set_cursor"), function("copy_prefix")
        self.step, self.decode = function("step"), function("decode")
        self.teach, self.draft_counts = function("teach"), function("draft_counts")
        self.probe = function("probe", ctypes.c_uint64)


class NativeRunner:
    """A `Runner` on the CPU, in C."""

    device = "cpu"

    def __init__(self, checkpoint: Checkpoint, *, rows: int, threads: int, cpu: str = "auto", speculation: bool = True) -> None:
        config = checkpoint.config
        self.kernel = Kernel(cpu)
        self.kernels = f"native-{self.kernel.cpu}"
        self.rows, self.vocab_size = rows, config.vocab_size
        self.max_items = max(rows, MAX_PREFILL)
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
            config.arithmetic == "w8a16",
            rows,
            self.max_items,
            threads,
            speculation,
        )
        self.engine = ctypes.c_void_p(self.kernel.create(ctypes.byref(c_config), addresses))
        if self.engine.value is None:
            raise MemoryError(f"no memory for a cache of {rows} rows; lower --max-batch")
        self.memory_bytes = int(self.kernel.cache_bytes(self.engine))
        self.num_logprobs = [-1] * rows
        self.turn_rows = self.measure_turn_rows(config.block_size)

    def measure_turn_rows(self, block_size: int) -> int:
        """How many rows at once make most tokens a second, all rows taking turns in the middle of their context."""
        if self.rows < 2 * TURN_SIZES[-1] or block_size < 4 * TURN_STEPS:
            return self.rows
        for row in range(self.rows):
            self.set_row(row, SamplingParams(), [], [])
        self.time_turns(1, 1, block_size // 2)
        if self.time_turns(1, 1, block_size // 2) > SLOW_STEP_S:
            return self.rows
        best = self.rows
        best_s = self.time_turns(best, self.rows, block_size // 2)
        for size in (size for size in TURN_SIZES if size < self.rows):
            seconds = min(self.time_turns(size, self.rows, block_size // 2) for _ in range(2))
            if seconds < 0.95 * best_s:
                best, best_s = size, seconds
        return best

    def time_turns(self, size: int, rows: int, position: int) -> float:
        """CPU seconds of a step for ``rows`` rows, ``size`` at a time."""
        began = time.process_time()  # not the clock: other processes do not count
        for first in range(0, rows, size):
            self.decode([DecodeSlot(row, 0, position, TURN_STEPS) for row in range(first, min(rows, first + size))])
        return (time.process_time() - began) / TURN_STEPS

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
        self.kernel.set_row(
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

    def copy_prefix(self, copy: PrefixCopy) -> None:
        """See `CopiesPrefixes`."""
        self.kernel.copy_prefix(self.engine, copy.source, copy.target, copy.num_tokens)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """See `Runner`."""
        items = items_of(chunks)
        for first in range(0, len(items), self.max_items):
            self.step(items[first : first + self.max_items])

    def step(self, items: Sequence[tuple[int, int, int]], logits: NDArray[np.float32] | None = None) -> None:
        """At most ``max_items`` (row, position, token), those of a row in order; writes their logits (items, V), if asked for."""
        rows, at, tokens = (int32(column) for column in zip(*items, strict=True))
        out = ctypes.c_void_p() if logits is None else pointer(logits)
        self.kernel.step(self.engine, len(items), pointer(tokens), pointer(rows), pointer(at), out)

    def decode(self, slots: Sequence[DecodeSlot]) -> list[SampledTokens]:
        """See `Runner`."""
        for slot in slots:
            self.kernel.set_cursor(self.engine, slot.row, slot.token, slot.position)
        rows, steps = int32([s.row for s in slots]), int32([s.num_steps for s in slots])
        most, widest = int(steps.max()), max(self.num_logprobs[s.row] for s in slots)
        out, passes = np.zeros((len(slots), most), np.int32), np.zeros(len(slots), np.int32)
        logprobs = np.zeros((len(slots), most, 1 + 2 * widest), np.float64) if widest >= 0 else None
        hints = guesses_of(slots, most)
        stride = 0 if logprobs is None else logprobs.shape[2]
        written = pointer(out), pointer(passes), address(logprobs), stride
        self.kernel.decode(self.engine, len(slots), pointer(rows), pointer(steps), most, address(hints), *written)
        tokens = out.tolist()
        read = [None if logprobs is None else self.read_logprobs(logprobs[i, : s.num_steps], s.row) for i, s in enumerate(slots)]
        return [SampledTokens(tokens[i][: s.num_steps], read[i], int(passes[i])) for i, s in enumerate(slots)]

    def read_logprobs(self, values: NDArray[np.float64], row: int) -> list[TokenLogprobs] | None:
        """(steps, 1 + 2n) of (sampled, id, value, id, value, …) as tuples."""
        count = self.num_logprobs[row]
        if count < 0:
            return None
        return [(v[0], [(int(v[1 + 2 * i]), v[2 + 2 * i]) for i in range(count)]) for v in values.tolist()]

    def logits(self, chunks: Sequence[PrefillChunk]) -> NDArray[np.float32]:
        """See `Runner`."""
        items = items_of(chunks)
        out = np.zeros((len(items), self.vocab_size), np.float32)
        for first in range(0, len(items), self.max_items):
            part = items[first : first + self.max_items]
            self.step(part, out[first : first + len(part)])
        return out

    def teach(self, draft: Draft) -> None:
        """Guess from now on, at first from what training has counted. Raises nothing: no guess moves a byte."""
        columns = draft.slots, draft.tags, draft.sizes, draft.tokens.astype(np.uint16), draft.counts.astype(np.uint16)
        self.kernel.teach(self.engine, len(draft.slots), *(ctypes.c_void_p(column.ctypes.data) for column in columns))

    @property
    def speculation(self) -> Speculation:
        """See `Runner`."""
        counts = np.zeros(3, np.int64)
        self.kernel.draft_counts(self.engine, ctypes.c_void_p(counts.ctypes.data))
        return Speculation(*counts.tolist())

    def probe(self, function: int) -> int:
        """See `Runner`."""
        return int(self.kernel.probe(function))

    def close(self) -> None:
        """See `Runner`."""
        self.kernel.destroy(self.engine)
        self.engine = ctypes.c_void_p()
