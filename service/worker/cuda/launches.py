"""Which kernels a step launches, and the constants that kernel.cu is built with: one place for both, so that they cannot disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from model.config import GPTConfig

THREADS, TILE, SEGMENT = 256, 32, 256
"""Of kernel.cu: threads of a block, outputs of a tile of weights, tokens of the vocabulary that are weighed together."""
ITEMS = 8
"""Items that share a block, and with it each weight that it reads, when there are many."""
FEW = 2
"""Up to this many items each has blocks of its own: less work in a chain of waits, which is all that counts then."""
MANY_ROWS = 32
"""From this many on, q, k and v are computed for eight items at a time, in a launch of their own."""
SMALL_VOCABULARY = 1024
MAX_HEAD_SIZE, MAX_POSITIONS, MAX_WIDTH = 1024, 8192, 8191
"""Heads and contexts fit into a block's shared memory (48 KiB); the width is the arithmetic's own limit."""
MAX_LOGPROBS = 128


class Launch(NamedTuple):
    """One kernel of a step; blocks have `THREADS` threads."""

    kernel: str
    layer: int
    grid: tuple[int, int]


def parts(n: int, size: int) -> int:
    """How many parts of ``size`` hold n."""
    return -(-n // size)


class ShapeError(ValueError):
    """A model of a shape that these kernels do not take; the message names the size and the limit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A model's shape as the kernels see it."""

    config: GPTConfig
    small_weights: int = 128 << 10
    """Bytes of weights that every block may read again rather than wait for another launch."""
    vector_bytes: int = 24 << 10
    """Of a block's shared memory, for the inputs of a product; what does not fit comes in several parts."""

    def __post_init__(self) -> None:
        c = self.config
        for name, size, limit in [
            ("heads", c.head_size, MAX_HEAD_SIZE),
            ("contexts", c.block_size, MAX_POSITIONS),
            ("layers", c.n_embd, MAX_WIDTH),
        ]:
            if size > limit:
                raise ShapeError(f"{name} of {size} are larger than the CUDA kernels' {limit}")

    @property
    def wide(self) -> bool:
        """Whether activations have 16 bits."""
        return self.config.arithmetic == "w8a16"

    @property
    def head_outputs(self) -> int:
        """q, k and v of one head, padded to whole tiles."""
        return parts(3 * self.config.head_size, TILE) * TILE

    @property
    def qkv_items(self) -> int:
        """Items of a block of `qkv`: their sums fit into 16 KiB."""
        bytes_each = self.head_outputs * 4 * (2 if self.wide else 1)
        return max(n for n in (1, 2, 4, ITEMS) if n == 1 or n * bytes_each <= 16 << 10)

    @property
    def fused(self) -> bool:
        """Whether attention's projection is small enough to be computed again by each block of the MLP."""
        return self.config.n_embd * self.config.attn_width <= self.small_weights

    @property
    def small_vocabulary(self) -> bool:
        """Whether one block computes an item's logits and draws from them."""
        v = self.config.vocab_size
        return v <= SMALL_VOCABULARY and v * self.config.n_embd <= self.small_weights

    @property
    def most_logprobs(self) -> int:
        """The most probable tokens that a draw can report."""
        return min(self.config.vocab_size, MAX_LOGPROBS)

    def defines(self) -> list[str]:
        """Options for the compiler."""
        c = self.config
        values = {
            "L_": c.n_layer,
            "C_": c.n_embd,
            "H_": c.n_head,
            "D_": c.head_size,
            "T_": c.block_size,
            "V_": c.vocab_size,
            "GELU": int(c.activation != "relu"),
            "WIDE": int(self.wide),
            "FUSED": int(self.fused),
            "SMALL_VOCABULARY": int(self.small_vocabulary),
            "MOST_LOGPROBS": self.most_logprobs,
            "VECTOR_BYTES": self.vector_bytes,
            "QKV_ITEMS": self.qkv_items,
            "PROJECT_ITEMS": ITEMS,
            "UP_ITEMS": ITEMS,
            "DOWN_ITEMS": ITEMS,
            "HEAD_ITEMS": ITEMS,
        }
        return [f"-D{name}={value}" for name, value in values.items()]

    def kernels(self) -> list[str]:
        """Every kernel of the build."""
        one = ["project_up"] if self.fused else ["project_one", "up_one"]
        end = ["head_draw"] if self.small_vocabulary else ["head", "head_one", "weigh", "pick"]
        return ["qkv_attend", "qkv", "attend", "project", "up", "down", "down_one", *one, *end, "commit", "copy_prefix"]

    def launches(self, items: int, *, distinct: bool, logits: bool = True, drafts: bool = False) -> list[Launch]:
        """A step of so many items. ``distinct``: no two of one row. ``logits``: and draw. ``drafts``: and keep right guesses."""
        layers = [launch for layer in range(self.config.n_layer) for launch in self.block(layer, items, distinct)]
        end = self.draw(items) if logits else []
        return [*layers, *end, *([Launch("commit", 0, (parts(items, THREADS), 1))] if drafts else [])]

    def block(self, layer: int, items: int, distinct: bool) -> list[Launch]:
        """One Transformer block."""
        c, few = self.config, items <= FEW
        tiles, tiles_up, groups = parts(c.n_embd, TILE), parts(4 * c.n_embd, TILE), parts(items, ITEMS)
        attention = [Launch("attend", layer, (c.n_head, items))]
        if distinct and items < MANY_ROWS:
            attention = [Launch("qkv_attend", layer, (c.n_head, items))]
        else:
            attention.insert(0, Launch("qkv", layer, (c.n_head, parts(items, self.qkv_items))))
        if not few:
            middle = [Launch("project", layer, (tiles, groups)), Launch("up", layer, (parts(tiles_up, 2), groups))]
        elif self.fused:
            middle = [Launch("project_up", layer, (tiles_up, items))]
        else:
            middle = [Launch("project_one", layer, (tiles, items)), Launch("up_one", layer, (tiles_up, items))]
        down = Launch("down_one", layer, (tiles, items)) if few else Launch("down", layer, (tiles, groups))
        return [*attention, *middle, down]

    def draw(self, items: int) -> list[Launch]:
        """Logits, and a token of each item that still has to draw."""
        if self.small_vocabulary:
            return [Launch("head_draw", 0, (1, items))]
        pairs = parts(parts(self.config.vocab_size, TILE), 2)
        head = Launch("head_one", 0, (pairs, items)) if items <= FEW else Launch("head", 0, (pairs, parts(items, ITEMS)))
        weigh = Launch("weigh", 0, (parts(self.config.vocab_size, SEGMENT), items))
        return [head, weigh, Launch("pick", 0, (1, items))]
