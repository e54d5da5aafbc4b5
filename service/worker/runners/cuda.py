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
from service.worker.cuda.rows import Drawing, Item, row_state
from service.worker.runners.interface import DecodeSlot, PrefillChunk, PrefixCopy, RunnerUnavailable, SampledTokens, Speculation

ROWS = 256
"""As many as the card's memory holds, up to this."""
MAX_ITEMS, MAX_STEPS, GRAPH_STEPS = 256, 64, 8
"""Tokens of a prefill pass; steps of a burst; steps of a graph, since starting one costs as much as a kernel."""
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of items that have a graph: a burst takes the next larger one, whose idle blocks return at once."""
PROBE_BLOCKS = 64
ITEM_ARRAYS = ("row", "token", "position", "draft", "limit", "drawn")
Ints = Sequence[int]


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
        self.graphs: dict[tuple[int, int, bool, bool, bool], ctypes.c_void_p] = {}
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
        """See `Runner`. While guesses are right, a pass draws several tokens of a row; then one wait for the card, however many steps."""
        assert len({slot.row for slot in slots}) == len(slots), "rows of a burst differ"
        drawings = [Drawing(slot, self.num_logprobs[slot.row]) for slot in slots]
        while guessed := [d for d in drawings if d.is_guessed and d.left > 1][: self.max_items // 2]:
            self.verify(guessed)
        while unfinished := [d for d in drawings if d.left]:
            self.burst(unfinished)
        return [d.sampled() for d in drawings]

    def copy_prefix(self, copy: PrefixCopy) -> None:
        """See `CopiesPrefixes`."""
        numbers = [ctypes.c_int(n) for n in (copy.source, copy.target, copy.num_tokens)]
        config = self.plan.config
        self.card.launch(self.functions["copy_prefix"], (config.n_head, config.n_layer), [self.arguments(0), *numbers])

    def probe(self, function: int) -> int:
        """See `Runner`."""
        self.card.put("sums", np.zeros(64, np.uint64))
        sums, each = ctypes.c_void_p(self.card.addresses["sums"]), COUNT // (PROBE_BLOCKS * THREADS)
        arguments = [sums, ctypes.c_int(function), ctypes.c_uint64(0), ctypes.c_int(each)]
        self.card.launch(self.functions["probe"], (PROBE_BLOCKS, 1), arguments)
        return int(self.card.get("sums", 64)[function])

    @property
    def speculation(self) -> Speculation:
        """See `Runner`. It makes no guesses of its own."""
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

    def place(self, items: Sequence[Item], limits: Ints = (), drafts: Ints = ()) -> None:
        """The items of the next steps, how many tokens each draws, and how many guesses of its row come before it."""
        arrays = np.zeros((len(ITEM_ARRAYS), self.size_for(len(items))), np.int32)
        arrays[0] = -1
        arrays[:3, : len(items)] = np.array(items, np.int32).T
        arrays[3, : len(drafts)] = drafts
        arrays[4, : len(limits)] = limits
        for name, array in zip(ITEM_ARRAYS, arrays, strict=True):
            self.card.put(name, array)

    def size_for(self, items: int) -> int:
        """The number of items whose graph computes this many."""
        return next((size for size in SIZES if items <= size <= self.max_items), self.max_items)

    def step(self, items: int, *, steps: int = 1, distinct: bool = False, logits: bool = True, drafts: bool = False) -> None:
        """Start so many steps of the items that were placed."""
        size = self.size_for(items)
        key = (size, steps, distinct, logits, drafts)
        if key not in self.graphs:
            launches = self.plan.launches(size, distinct=distinct, logits=logits, drafts=drafts) * steps
            self.graphs[key] = self.card.captured(self.launches(launches, self.arguments(size, drafts=drafts)))
        self.card.run(self.graphs[key])

    def arguments(self, items: int, *, drafts: bool = False) -> layout.Args:
        """What the kernels of a step of so many items are called with. With drafts an item draws once, and all lie side by side."""
        args = layout.Args(**{name: self.card.addresses[name] for name in layout.POINTERS})
        args.num_rows, args.num_items, args.root = self.rows, items, layout.root(self.plan.config)
        args.steps, args.verifying = 1 if drafts else MAX_STEPS, drafts
        return args

    def launches(self, launches: Sequence[Launch], args: layout.Args) -> Callable[[], None]:
        """What a graph is captured from."""

        def run() -> None:
            for kernel, layer, grid in launches:
                self.card.launch(self.functions[kernel], grid, [args, ctypes.c_int(layer)])

        return run

    def verify(self, drawings: Sequence[Drawing]) -> None:
        """One pass over the next tokens of rows and guesses of those after; as many are drawn as were guessed right, and one more."""
        parts = [d.items(self.max_items // len(drawings) - 1) for d in drawings]
        items, drafts = [item for part in parts for item in part], [i for part in parts for i in range(len(part))]
        self.place(items, [1] * len(items), drafts)
        self.step(len(items), drafts=True)
        drawn = self.card.get("drawn", len(items))
        tokens, values = self.drawn_by(drawings, len(items), 1)
        first = 0
        for d, part in zip(drawings, parts, strict=True):
            last = first + int(drawn[first])
            d.add(tokens[first:last, 0].tolist(), 1, None if values is None else values[first:last, 0])
            d.is_guessed = 1 < len(part) == last - first
            first += len(part)

    def burst(self, drawings: Sequence[Drawing]) -> None:
        """Up to `MAX_STEPS` steps of rows."""
        limits = [min(d.left, MAX_STEPS) for d in drawings]
        self.place([item for d in drawings for item in d.items(0)], limits)
        for _ in range(max(limits) // GRAPH_STEPS):
            self.step(len(drawings), steps=GRAPH_STEPS, distinct=True)
        for _ in range(max(limits) % GRAPH_STEPS):
            self.step(len(drawings), distinct=True)
        tokens, values = self.drawn_by(drawings, len(drawings), MAX_STEPS)
        for n, (d, limit) in enumerate(zip(drawings, limits, strict=True)):
            d.add(tokens[n, :limit].tolist(), limit, None if values is None else values[n, :limit])

    def drawn_by(self, drawings: Sequence[Drawing], items: int, steps: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """(items, steps) tokens, and their log-probabilities if somebody wants some."""
        rows = -(-items * steps // MAX_STEPS)
        tokens = self.card.get("out", rows).reshape(-1, steps)
        if all(d.num_logprobs < 0 for d in drawings):
            return tokens, None
        values = self.card.get("logprobs", rows)
        return tokens, values.reshape(-1, steps, values.shape[2])
