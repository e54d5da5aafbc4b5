"""The forward pass in exact arithmetic on tensors: the bits of `model.exact.network`, on any device that torch knows.

Shape letters: B rows of this pass, N new tokens of each, T tokens so far, C n_embd, H heads, D head size, V vocabulary, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import GPTConfig
from service.worker.runners import torch_arithmetic as ar


class TorchNetwork:
    """Weights as whole numbers, and keys and values of ``rows`` sequences in 8 bits."""

    def __init__(self, config: GPTConfig, tensors: Mapping[str, NDArray[np.float32]], rows: int, device: torch.device) -> None:
        self.config, self.wide = config, config.arithmetic == "w8a16"
        moved = {name: torch.from_numpy(w).to(device) for name, w in tensors.items()}
        self.embeddings = {name: ar.embedding(w) for name, w in moved.items() if "embedding" in name}
        self.weights = {name: ar.quantise(w) for name, w in moved.items() if w.ndim == 2 and "embedding" not in name}
        self.vectors = {name: ar.parameter(w) for name, w in moved.items() if w.ndim == 1}
        self.no_bias = torch.zeros(1, device=device)
        self.width = torch.tensor(config.n_embd, device=device)
        self.root = ar.root(torch.tensor(config.head_size, device=device))
        shape = (config.n_layer, 2, rows, config.n_head, config.block_size, config.head_size)
        self.cache = torch.zeros(shape, dtype=torch.int8, device=device)
        self.scales = torch.zeros(shape[:-1], device=device)

    def logits(self, tokens: Tensor, rows: Tensor, positions: Tensor, length: int) -> Tensor:
        """(B, N) tokens of (B,) different rows at (B, N) positions below ``length`` → (B, N, V). Their keys and values are cached."""
        x = self.embeddings["token_embedding.weight"][tokens] + self.embeddings["position_embedding.weight"][positions]
        x = ar.bound(x)
        for layer in range(self.config.n_layer):
            block = f"blocks.{layer}."
            x = ar.residual(x, self.attention(layer, self.norm(block + "ln_1", x), rows, positions, length))
            x = ar.residual(x, self.mlp(block + "mlp", self.norm(block + "ln_2", x)))
        return self.linear("lm_head", self.norm("ln_f", x))

    def norm(self, name: str, x: Tensor) -> Tensor:
        """LayerNorm of int32 (…, C); its two sums are exact."""
        d = x - ar.mean(x.sum(-1, keepdim=True, dtype=torch.int64), self.width)
        rsigma = ar.rsigma((d * d).sum(-1, keepdim=True), self.width)
        return ar.norm(d, rsigma, self.vectors[name + ".weight"], self.vectors[name + ".bias"])

    def linear(self, name: str, y: Tensor, levels: float = ar.SIGNED) -> Tensor:
        """(…, K) → (…, M): quantised, summed as integers, scaled once."""
        weight, scale_w = self.weights[name + ".weight"]
        q, scale = ar.quantise(y, ar.WIDE if self.wide else levels)
        if self.wide:
            high, low = ar.digits(q)
            acc = 256 * ar.product(high, weight).to(torch.int64) + ar.product(low, weight)
        else:
            acc = ar.product(q, weight)
        return ar.linear(acc, scale, scale_w[:, 0], self.vectors.get(name + ".bias", self.no_bias))

    def mlp(self, name: str, y: Tensor) -> Tensor:
        """(…, C) → 4C → (…, C)."""
        hidden = self.linear(name + ".up", y)
        if self.config.activation == "relu":
            return self.linear(name + ".down", hidden.relu(), ar.UNSIGNED)
        return self.linear(name + ".down", ar.gelu(hidden))

    def attention(self, layer: int, y: Tensor, rows: Tensor, positions: Tensor, length: int) -> Tensor:
        """(B, N, C) → (B, N, C) over what each row has up to each token's position."""
        b, n, _ = y.shape
        heads, size = self.config.n_head, self.config.head_size
        name = f"blocks.{layer}.attn."
        q, scale = ar.quantise(self.linear(name + "qkv", y).view(b, n, 3, heads, size))  # (B, N, 3, H, D) and (B, N, 3, H, 1)
        for part in (0, 1):  # keys and values
            self.cache[layer, part][rows[:, None], :, positions] = q[:, :, 1 + part].to(torch.int8)
            self.scales[layer, part][rows[:, None], :, positions] = scale[:, :, 1 + part, :, 0]
        keys, values = (self.cache[layer, part, rows, :, :length].float() for part in (0, 1))  # (B, H, T, D)
        scale_k, scale_v = (self.scales[layer, part, rows, :, None, :length] for part in (0, 1))  # (B, H, 1, T)
        query, scale_q = q[:, :, 0].transpose(1, 2), scale[:, :, 0].transpose(1, 2)  # (B, H, N, D) and (B, H, N, 1)
        score = ar.score(ar.product(query, keys), scale_q, scale_k, self.root)  # (B, H, N, T)
        seen = torch.arange(length, device=y.device) <= positions[:, None, :, None]
        score = torch.where(seen, score, float("-inf"))
        e = ar.exp(score - score.amax(-1, keepdim=True))
        z = ar.count(e).sum(-1, keepdim=True, dtype=torch.int64)
        weight = e * scale_v
        top = weight.amax(-1, keepdim=True)
        share = (weight * ar.inverse_share(top)).round()  # 0 … 255
        out = ar.product(share, values.transpose(-1, -2)).float() * ar.attended(top, z)
        return self.linear(name + "proj", out.transpose(1, 2).reshape(b, n, heads * size))
