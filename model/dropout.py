"""Dropout, and causal attention with dropout of its weights, both cheap on a CPU as well.

A random float per element costs a CPU more than the layer that it drops from; here an element takes one byte of a 64-bit draw
(so p is rounded to 1/256: 0.2 becomes 0.1992, and the gain is that of the rounded p). Fused CPU attention kernels refuse
dropout, and the textbook's way moves N×N matrices through memory a dozen times: `DropoutAttention` takes the queries in blocks,
so that few scores above the diagonal are computed (37 % saved with four blocks) and every intermediate is small enough to be
recycled by the allocator. Both draw from torch's global generator: seeded per step, a step is a function of its seed.

Shape letters: G = sequences × heads, N tokens, D head size, Q queries of one block, M keys that the block may see.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERY_BLOCK = 64


def keep_mask(shape: tuple[int, ...], p: float) -> Tensor:
    """Boolean mask, False with probability p rounded to 1/256: eight elements for each 64-bit draw of torch's generator."""
    count = math.prod(shape)
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    return words.view(torch.uint8)[:count].view(shape) >= round(p * 256)


def gain(p: float) -> float:
    """What kept elements are multiplied by, so that the expectation is unchanged: 1 / (1 − p), for the rounded p."""
    return 256 / (256 - round(p * 256))


class Dropout(nn.Module):
    """Inverted dropout while training, the identity otherwise."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same shape."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * keep_mask(x.shape, self.p).to(x.dtype) * gain(self.p)


def dropout_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, p: float) -> Tensor:
    """Causal attention over (B, H, N, D) with dropout of its weights → (B, H, N, D)."""
    y: Tensor = DropoutAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale, p)  # type: ignore[no-untyped-call]
    return y.view_as(q)


class DropoutAttention(torch.autograd.Function):
    """softmax(q·kᵀ·scale), causal, inverted dropout, times v; the gradient is written out by hand."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]  # softmax stays in the dtype of the queries
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, p: float) -> Tensor:
        """(G, N, D) queries, keys and values → (G, N, D)."""
        groups, n, _ = q.shape
        out, saved = torch.empty_like(q), []
        for start in range(0, n, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, n)
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).mul_(scale)  # (G, Q, M)
            future = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
            scores[:, :, start:].masked_fill_(future, -math.inf)
            weights = scores.softmax(-1)
            keep = keep_mask((groups, end - start, end), p)
            out[:, start:end] = torch.bmm(weights * keep.to(weights.dtype), v[:, :end]).mul_(gain(p))
            saved += [weights, keep]
        ctx.save_for_backward(q, k, v, *saved)
        ctx.scale, ctx.gain = scale, gain(p)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """The gradients of q, k and v."""
        q, k, v, *saved = ctx.saved_tensors
        dout = grad_outputs[0] * ctx.gain
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, (weights, keep) in enumerate(zip(saved[::2], saved[1::2], strict=True)):
            start, end = block * QUERY_BLOCK, weights.shape[2]
            kept = keep.to(weights.dtype)
            dout_block = dout[:, start:end]
            dv[:, :end] += torch.bmm((weights * kept).transpose(1, 2), dout_block)
            dweights = torch.bmm(dout_block, v[:, :end].transpose(1, 2)).mul_(kept)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(ctx.scale)
            dq[:, start:end] = torch.bmm(dscores, k[:, :end])
            dk[:, :end] += torch.bmm(dscores.transpose(1, 2), q[:, start:end])
        return dq, dk, dv, None, None
