"""A script of steps for ``races.cpp``: every kernel of a step, prefill, decode of few and many rows, guesses, every filter."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from model.params import SamplingParams
from service.worker.cuda import layout
from service.worker.cuda.compiler import SOURCES
from tests.gpu.checkpoints import Model, random_model
from tests.gpu.emulated import Emulated

WRITE, WRITE_LAYER, LAUNCH = range(3)
FROM_HOST = ("row", "token", "position", "draft", "limit", "drawn", "rows", "bias", "in_prompt", "counts")
MODELS: dict[str, dict[str, Any]] = {
    "small": {"vocab_size": 300, "n_embd": 72},
    "large": {"vocab_size": 600, "n_embd": 40, "activation": "gelu_tanh", "wide": True, "plan": {"small_weights": 0, "vector_bytes": 1024}},
}
"""One with the kernels for small models and vocabularies, and one with those for large ones, whose inputs come in several chunks."""


class Recorder(Emulated):
    """Writes launches down instead of running them."""

    def __init__(self, model: Model, rows: int, items: int, steps: int, file: BinaryIO) -> None:
        super().__init__(model, rows, items, steps=steps)
        self.file = file
        for name in layout.POINTERS[1:]:
            self.write(WRITE, layout.POINTERS.index(name), 0, self.arrays[name].tobytes())
        for layer in range(self.plan.config.n_layer):
            for index, name in enumerate(layout.LAYER):
                self.write(WRITE_LAYER, index, layer, self.arrays[f"{layer}.{name}"].tobytes())

    def write(self, kind: int, index: int, layer: int, data: bytes) -> None:
        """One record."""
        self.file.write(struct.pack("4i", kind, index, layer, len(data)) + data)

    def set_items(self, rows: Sequence[int], tokens: Sequence[int], positions: Sequence[int], *, limit: int = 0) -> None:
        """Also what the rows' requests are."""
        super().set_items(rows, tokens, positions, limit=limit)
        for name in FROM_HOST:
            self.write(WRITE, layout.POINTERS.index(name), 0, self.arrays[name].tobytes())

    def emulate(self, kernel: str, arguments: Sequence[Any], grid: tuple[int, int]) -> None:
        """One record."""
        args, layer = arguments
        numbers = (args.num_rows, args.num_items, args.steps, args.verifying)
        self.write(LAUNCH, 0, 0, struct.pack("32s7if", kernel.encode(), layer.value, *grid, *numbers, args.root))


def with_equal_tokens(model: Model) -> Model:
    """Ties across the whole vocabulary, so that filters have to cut them."""
    for name in ("lm_head.weight", "lm_head.bias"):
        model.tensors[name][::3] = model.tensors[name][0]
    return model


def record(name: str, path: Path) -> Model:
    """Write the script for one of `MODELS`."""
    model, rows = with_equal_tokens(random_model(4, n_head=2, n_layer=1, block_size=24, **MODELS[name])), 5
    with path.open("wb") as file:
        r = Recorder(model, rows, 16, 4, file)
        r.set_items([3] * 5 + [4], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 0])
        r.step(distinct=False, logits=False)
        for row in range(rows):
            settings: dict[str, Any] = {"top_k": (0, 4, 0, 40)[row % 4], "top_p": (1, 0.8, 0.3, 0.9)[row % 4], "min_p": 0.01 * (row % 3)}
            params = SamplingParams(
                seed=row, temperature=0.9 * (row != 2), num_logprobs=(None, 2, 0)[row % 3], frequency_penalty=0.1, **settings
            )
            r.set_row(row, params, [1, 2], [3])
        order = [*range(rows - 1, -1, -1)]
        r.set_items(order, [7] * rows, [5 if row == 3 else 1 if row == 4 else 0 for row in order], limit=2)
        r.step()
        r.step()
        r.set_items([3, 1], [8, 9], [7, 2], limit=1)
        r.step()
        r.set_items([0, 0, 0, 1], [1, 2, 3, 4], [2, 3, 4, 2], limit=1)
        r.step(distinct=False, drafts=True)
    return model


def barriers() -> list[int]:
    """The number of every barrier of the kernels."""
    text = "".join((SOURCES / name).read_text() for name in ("kernel.cu", "draw.cuh"))
    numbers = [int(n) for n in re.findall(r"BARRIER\((\d+)\)", text)]
    assert len(numbers) == len(set(numbers)), "two barriers have one number"
    return sorted(numbers)
