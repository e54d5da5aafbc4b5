"""The key-value cache: the contract between attention, which fills and reads it, and whoever owns the memory.

Shape letters: L layers, R rows (one sequence each), H heads, T = block_size positions, D = head size, N tokens of this pass.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from model.config import GPTConfig


class CacheView(Protocol):
    """What one forward pass sees of a cache: attention hands over new keys and values and gets back all it may look at."""

    positions: Tensor
    """(B, N) position of each new token in its row."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store ``k`` and ``v`` (B, H, N, D); return all keys and values (B, H, T, D) and the mask (B, 1, N, T)."""
        ...


class KVCache:
    """One full-context row per sequence, allocated once: 2·L·R·H·T·D numbers."""

    def __init__(self, config: GPTConfig, rows: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        shape = (config.n_layer, rows, config.n_head, config.block_size, config.head_size)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.columns = torch.arange(config.block_size, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory taken, in bytes."""
        return 2 * self.k.numel() * self.k.element_size()

    def mask(self, positions: Tensor) -> Tensor:
        """(B, N) positions → (B, 1, N, T): True where a token may look, its own position included."""
        return self.columns <= positions[:, None, :, None]


class DecodeView:
    """Rows ``first … first + B − 1``, one new token each. A row at a negative position is idle, and its cache stays as it is: it may
    belong to a sequence that is half encoded, or that waits for the next burst."""

    def __init__(self, cache: KVCache, first: int, positions: Tensor) -> None:
        self.cache, self.rows = cache, slice(first, first + positions.shape[0])
        self.active = (positions >= 0)[:, None, None]
        self.positions = positions.clamp(min=0)[:, None]
        self.mask = cache.mask(self.positions)
        self.index = torch.arange(positions.shape[0], device=positions.device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.cache.k[layer, self.rows], self.cache.v[layer, self.rows]
        place = (self.index, slice(None), self.positions[:, 0])
        keys[place] = torch.where(self.active, k[:, :, 0], keys[place])
        values[place] = torch.where(self.active, v[:, :, 0], values[place])
        return keys, values, self.mask


class PrefillView:
    """One row, N consecutive new tokens from position ``start`` on (a tensor of one element, so that a graph can be replayed)."""

    def __init__(self, cache: KVCache, row: Tensor, start: Tensor, length: int) -> None:
        self.cache, self.row = cache, row
        offsets = torch.arange(length, device=start.device)
        # A padded tail runs over the end of the row: it is folded onto the last column, which is written again before it is read.
        self.positions = (start + offsets).clamp(max=cache.k.shape[3] - 1)[None]
        self.mask = cache.mask(self.positions)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.cache.k[layer], self.cache.v[layer]
        keys[self.row, :, self.positions[0]] = k[0].transpose(0, 1)
        values[self.row, :, self.positions[0]] = v[0].transpose(0, 1)
        return keys[self.row], values[self.row], self.mask
