"""Drives kernel.cu. A step is a list of launches, captured once as a graph for each number of items; a burst starts it again and again."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.files import Checkpoint
from model.exact.probes import COUNT
from model.params import SamplingParams
from service.worker.cuda import layout
from service.worker.cuda.card import Card
from service.worker.cuda.compiler import CompileError, machine_code
from service.worker.cuda.driver import CudaError, NoDriverError
from service.worker.cuda.launches import THREADS, Launch, Plan, ShapeError
from service.worker.cuda.rows import row_state
from service.worker.runners.interface import DecodeSlot, PrefillChunk, RunnerUnavailable, SampledTokens, Speculation, TokenLogprobs

ROWS = 256
"""As many as the card's memory holds, up to this."""
MAX_ITEMS, MAX_STEPS, GRAPH_STEPS = 256, 64, 8
"""Tokens of a prefill pass; steps of a burst; steps of a graph, since starting one costs as much as a kernel."""
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of items that have a graph: a burst takes the next larger one, whose idle blocks return at once."""
PROBE_BLOCKS = 64
ITEM_ARRAYS = ("row", "token", "position", "draft", "limit", "drawn")
Ints = Sequence[int]
Item = tuple[int, int, int]
"""Row, token, position."""


class CudaRunner:
    """A `Runner` on an NVIDIA GPU. Once a call has raised CudaError the process is of no further use."""

    device = "cuda"

    def __init__(self, checkpoint: Checkpoint, *, rows: int | None, cache: Path) -> None:
        try:
            self.plan = Plan(checkpoint.config)
            self.card = Card()
        except (NoDriverError, CudaError, ShapeError) as error:
            raise RunnerUnavailable(f"cuda: {error}") from None
        try:
            self.fill(checkpoint, rows, cache)
        except (CudaError, CompileError) as error:
            self.card.close()
            raise RunnerUnavailable(f"cuda: {self.card.name}: {error}") from None

    # ---- at the start ----------------------------------------------------------------------------------------------------

    def fill(self, checkpoint: Checkpoint, rows: int | None, cache: Path) -> None:
        """Machine code, memory, weights."""
        card, plan = self.card, self.plan
        code = machine_code("kernel.cu", card.arch, plan.defines(), cache)
        probe = machine_code("probe.cu", card.arch, [], cache)
        weights = layout.weights(checkpoint.tensors, plan)
        weights["layers"] = np.zeros((plan.config.n_layer, len(layout.LAYER)), np.uint64)
        fixed = {name: layout.Space(array.shape, array.dtype) for name, array in weights.items()}
        fixed["sums"] = layout.Space((64,), "u8")
        self.rows = self.fitting(sum(space.nbytes for space in fixed.values()), rows)
        self.turn_rows, self.max_items = self.rows, max(self.rows, MAX_ITEMS)
        spaces = layout.spaces(plan, self.rows, self.max_items, MAX_STEPS)
        card.allocate(fixed | spaces)
        self.memory_bytes = sum(spaces[name].nbytes for name in ("keys", "values", "key_scales", "value_scales"))
        for i in range(plan.config.n_layer):
            weights["layers"][i] = [card.addresses[f"{i}.{name}"] for name in layout.LAYER]
        for name, array in weights.items():
            card.put(name, array)
        for name in ("bias", "in_prompt", "counts"):
            card.put(name, np.zeros(spaces[name].shape, spaces[name].dtype))
        card.put("row", np.full(self.max_items, -1))
        card.wait()
        self.functions = card.load(code, plan.kernels()) | card.load(probe, ["probe"])
        self.graphs: dict[tuple[int, int, bool, bool], ctypes.c_void_p] = {}
        self.num_logprobs = [-1] * self.rows
        self.kernels = f"cuda-{card.arch} on {card.name}"

    def fitting(self, weights: int, rows: int | None) -> int:
        """Rows that the card has memory for: those that were asked for, or as many as there is room for. Raises CudaError."""
        free, items = self.card.free_bytes - weights, MAX_ITEMS

        def needed(n: int) -> int:
            return sum(space.nbytes + 256 for space in layout.spaces(self.plan, n, max(n, items), MAX_STEPS).values())

        for n in (rows,) if rows else (ROWS, 192, 128, 96, 64, 32, 16, 8, 4, 2, 1):
            if needed(n) <= free:
                return n
        n = rows or 1
        raise CudaError(f"{n} rows need {needed(n) + weights >> 20} MiB, {max(free + weights, 0) >> 20} are free; lower --max-batch")

    # ---- Runner ------------------------------------------------------------------------------------------------------------

    def set_row(self, row: int, params: SamplingParams, prompt: Ints, generated: Ints) -> None:
        """See `Runner`."""
        for name, value in row_state(self.plan, params, prompt, generated).items():
            self.card.put(name, value[None], row)
        wanted = params.num_logprobs
        self.num_logprobs[row] = -1 if wanted is None else min(wanted, self.plan.most_logprobs)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """See `Runner`."""
        for items in self.passes(chunks):
            self.encode(items, logits=False)
        self.card.wait()  # the scheduler measures how long this takes

    def logits(self, chunks: Sequence[PrefillChunk]) -> NDArray[np.float32]:
        """See `Runner`."""
        parts = []
        for items in self.passes(chunks):
            self.encode(items, logits=True)
            parts.append(self.card.get("logits", len(items)))
        whole: NDArray[np.float32] = np.concatenate(parts)
        return whole

    def decode(self, slots: Sequence[DecodeSlot]) -> list[SampledTokens]:
        """See `Runner`. One wait for the card, however many steps."""
        assert len({slot.row for slot in slots}) == len(slots), "rows of a burst differ"
        out = [SampledTokens([], [] if self.num_logprobs[slot.row] >= 0 else None) for slot in slots]
        for first in range(0, max(slot.num_steps for slot in slots), MAX_STEPS):
            self.burst(slots, out, first)
        return out

    def probe(self, function: int) -> int:
        """See `Runner`."""
        self.card.put("sums", np.zeros(64, np.uint64))
        sums, each = ctypes.c_void_p(self.card.addresses["sums"]), COUNT // (PROBE_BLOCKS * THREADS)
        arguments = [sums, ctypes.c_int(function), ctypes.c_uint64(0), ctypes.c_int(each)]
        self.card.launch(self.functions["probe"], (PROBE_BLOCKS, 1), arguments)
        return int(self.card.get("sums", 64)[function])

    @property
    def speculation(self) -> Speculation:
        """See `Runner`. Guesses are not looked at yet, though kernel.cu can judge them."""
        return Speculation()

    def close(self) -> None:
        """See `Runner`."""
        self.card.close()

    # ---- steps ---------------------------------------------------------------------------------------------------------------

    def passes(self, chunks: Sequence[PrefillChunk]) -> Iterator[list[Item]]:
        """The chunks' tokens, as many at a time as fit."""
        items = [(chunk.row, token, chunk.start + i) for chunk in chunks for i, token in enumerate(chunk.tokens)]
        for first in range(0, len(items), self.max_items):
            yield items[first : first + self.max_items]

    def encode(self, items: list[Item], *, logits: bool) -> None:
        """One step of known tokens: that of decoding if no two are of one row."""
        self.place(items)
        self.step(len(items), distinct=len({row for row, _, _ in items}) == len(items), logits=logits)

    def place(self, items: Sequence[Item], limits: Ints = ()) -> None:
        """The items of the next steps, and how many tokens each draws."""
        arrays = np.zeros((len(ITEM_ARRAYS), self.size_for(len(items))), np.int32)
        arrays[0] = -1
        arrays[:3, : len(items)] = np.array(items, np.int32).T
        arrays[4, : len(limits)] = limits
        for name, array in zip(ITEM_ARRAYS, arrays, strict=True):
            self.card.put(name, array)

    def size_for(self, items: int) -> int:
        """The number of items whose graph computes this many."""
        return next((size for size in SIZES if items <= size <= self.max_items), self.max_items)

    def step(self, items: int, *, steps: int = 1, distinct: bool = False, logits: bool = True) -> None:
        """Start so many steps of the items that were placed."""
        size = self.size_for(items)
        key = (size, steps, distinct, logits)
        if key not in self.graphs:
            launches = self.plan.launches(size, distinct=distinct, logits=logits) * steps
            self.graphs[key] = self.card.captured(self.launches(launches, self.arguments(size)))
        self.card.run(self.graphs[key])

    def arguments(self, items: int) -> layout.Args:
        """What the kernels of a step of so many items are called with."""
        args = layout.Args(**{name: self.card.addresses[name] for name in layout.POINTERS})
        args.num_rows, args.num_items, args.steps, args.root = self.rows, items, MAX_STEPS, layout.root(self.plan.config)
        return args

    def launches(self, launches: Sequence[Launch], args: layout.Args) -> Callable[[], None]:
        """What a graph is captured from."""

        def run() -> None:
            for kernel, layer, grid in launches:
                self.card.launch(self.functions[kernel], grid, [args, ctypes.c_int(layer)])

        return run

    def burst(self, slots: Sequence[DecodeSlot], out: Sequence[SampledTokens], first: int) -> None:
        """Steps ``first`` … ``first + MAX_STEPS``, added to ``out``."""
        live = [i for i, slot in enumerate(slots) if slot.num_steps > first]
        limits = [min(slots[i].num_steps - first, MAX_STEPS) for i in live]
        tokens = [out[i].tokens[-1] if first else slots[i].token for i in live]
        self.place([(slots[i].row, token, slots[i].position + first) for i, token in zip(live, tokens, strict=True)], limits)
        for _ in range(max(limits) // GRAPH_STEPS):
            self.step(len(live), steps=GRAPH_STEPS, distinct=True)
        for _ in range(max(limits) % GRAPH_STEPS):
            self.step(len(live), distinct=True)
        drawn = self.card.get("out", len(live)).tolist()
        wants = any(out[i].logprobs is not None for i in live)
        values = self.card.get("logprobs", len(live)) if wants else None
        for n, i in enumerate(live):
            out[i].tokens.extend(drawn[n][: limits[n]])
            logprobs = out[i].logprobs
            if values is not None and logprobs is not None:
                logprobs.extend(self.read_logprobs(values[n, : limits[n]], self.num_logprobs[slots[i].row]))

    @staticmethod
    def read_logprobs(values: NDArray[Any], count: int) -> list[TokenLogprobs]:
        """(steps, 1 + 2n) of (sampled, id, value, id, value, …) as tuples."""
        return [(v[0], [(int(v[1 + 2 * i]), v[2 + 2 * i]) for i in range(count)]) for v in values.tolist()]
