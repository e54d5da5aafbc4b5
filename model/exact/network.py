"""The forward pass in exact arithmetic: token ids in, logits out, the same bits on every machine.

Shape letters: B sequences, N new tokens of each, T tokens so far, C n_embd, H heads, D head size, V vocabulary, K inputs of a product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.config import GPTConfig
from model.exact import arithmetic as ar
from model.exact.arithmetic import Floats, Ints

CUT = 512
"""Terms that float32 adds up exactly: 512 · 255 · 127 < 2^24, so every partial sum is a whole number that float32 holds."""


def product(a: Floats, b: Floats) -> Ints:
    """Whole numbers (…, N, K) and (…, M, K) → their exact products (…, N, M), summed over K."""
    b = np.swapaxes(b, -1, -2)
    cuts = range(0, a.shape[-1], CUT)
    total: Ints = np.sum([np.matmul(a[..., i : i + CUT], b[..., i : i + CUT, :]).astype(np.int64) for i in cuts], axis=0)
    return total


class Cache:
    """Keys and values of B sequences of equal length, as integers of 8 bits with a scale for each head and position."""

    def __init__(self, config: GPTConfig, sequences: int = 1) -> None:
        shape = (config.n_layer, 2, sequences, config.n_head, config.block_size, config.head_size)
        self.values = np.zeros(shape, np.int8)
        self.scales = np.zeros(shape[:-1], np.float32)
        self.length = 0
        """Tokens of each sequence."""

    def put(self, layer: int, which: int, q: Floats, scale: Floats) -> tuple[Floats, Floats]:
        """Append keys (which = 0) or values (1), (B, H, N, D); all so far: (B, H, T, D) and scales (B, H, 1, T)."""
        end = self.length + q.shape[-2]
        self.values[layer, which, :, :, self.length : end] = q
        self.scales[layer, which, :, :, self.length : end] = scale[..., 0]
        return self.values[layer, which, :, :, :end].astype(np.float32), self.scales[layer, which, :, :, None, :end]


class ExactModel:
    """A checkpoint's weights as integers, and the pass over them."""

    def __init__(self, config: GPTConfig, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self.config = config
        embeddings = {name for name in tensors if "embedding" in name}
        self.embeddings = {name: ar.embedding(tensors[name]) for name in embeddings}
        self.weights = {name: ar.quantise(w) for name, w in tensors.items() if w.ndim == 2 and name not in embeddings}
        self.vectors = {name: ar.parameter(w) for name, w in tensors.items() if w.ndim == 1}
        self.wide = config.arithmetic == "w8a16"

    def text_logits(self, tokens: Sequence[int]) -> Floats:
        """(N, V) logits after each of N tokens, at most a context of them."""
        return self.logits(self.hidden(np.array([tokens]), Cache(self.config)).squeeze(0))

    def next_logits(self, tokens: Sequence[int]) -> Floats:
        """(V,) logits after all of these."""
        return self.logits(self.hidden(np.array([tokens]), Cache(self.config))[0, -1])

    def logits(self, x: Ints) -> Floats:
        """Residual stream (…, C) → logits (…, V)."""
        return self.linear("lm_head", self.norm("ln_f", x))

    def hidden(self, tokens: Ints, cache: Cache) -> Ints:
        """(B, N) tokens, encoded after those in the cache and added to it → residual stream (B, N, C).

        Any way of cutting a text into such passes gives the same bits.
        """
        start, end = cache.length, cache.length + tokens.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit the context of {self.config.block_size}")
        x = ar.bound(self.embeddings["token_embedding.weight"][tokens] + self.embeddings["position_embedding.weight"][start:end])
        for layer in range(self.config.n_layer):
            block = f"blocks.{layer}."
            x = ar.residual(x, self.attention(layer, self.norm(block + "ln_1", x), cache))
            x = ar.residual(x, self.mlp(block + "mlp", self.norm(block + "ln_2", x)))
        cache.length = end
        return x

    def norm(self, name: str, x: Ints) -> Floats:
        """LayerNorm of (…, C); its two sums are exact."""
        width = x.shape[-1]
        d = x - ar.mean(x.sum(-1, keepdims=True), width)
        rsigma = ar.rsigma((d * d).sum(-1, keepdims=True), width)
        return ar.norm(d, rsigma, self.vectors[name + ".weight"], self.vectors[name + ".bias"])

    def linear(self, name: str, y: Floats, levels: np.float32 = ar.SIGNED) -> Floats:
        """(…, K) → (…, M): the input is quantised, the products are summed as integers, the sum is scaled once."""
        weight, scale_w = self.weights[name + ".weight"]
        if self.wide:
            q, scale = ar.quantise(y, ar.WIDE)
            high, low = ar.digits(q)
            acc = 256 * product(high, weight) + product(low, weight)
        else:
            q, scale = ar.quantise(y, levels)
            acc = product(q, weight)
        bias = self.vectors.get(name + ".bias", np.zeros(1, np.float32))
        return ar.linear(acc.astype(np.float32), scale, scale_w[:, 0], bias)

    def mlp(self, name: str, y: Floats) -> Floats:
        """(…, C) → 4C → (…, C)."""
        hidden = self.linear(name + ".up", y)
        if self.config.activation == "relu":
            return self.linear(name + ".down", ar.relu(hidden), ar.UNSIGNED)
        return self.linear(name + ".down", ar.gelu(hidden))

    def attention(self, layer: int, y: Floats, cache: Cache) -> Floats:
        """Causal self-attention (B, N, C) → (B, N, C) over what the cache holds and the N tokens themselves."""
        b, n, _ = y.shape
        heads, size = self.config.n_head, self.config.head_size
        name = f"blocks.{layer}.attn."
        qkv = self.linear(name + "qkv", y).reshape(b, n, 3, heads, size).transpose(2, 0, 3, 1, 4)
        (q, scale_q), k, v = (ar.quantise(part) for part in qkv)  # each (B, H, N, D) and (B, H, N, 1)
        keys, scale_k = cache.put(layer, 0, *k)
        values, scale_v = cache.put(layer, 1, *v)
        score = ar.score(product(q, keys).astype(np.float32), scale_q, scale_k, ar.root(size))  # (B, H, N, T)
        seen = np.arange(keys.shape[2]) <= cache.length + np.arange(n)[:, None]
        score = np.where(seen, score, np.float32(-np.inf))
        e = ar.exp(score - score.max(-1, keepdims=True))
        z = ar.count(e).sum(-1, keepdims=True)
        weight = e * scale_v
        top = weight.max(-1, keepdims=True)
        share = np.rint(weight * ar.inverse_share(top))  # 0 … 255
        out = product(share, np.swapaxes(values, -1, -2)).astype(np.float32) * ar.attended(top, z)
        return self.linear(name + "proj", out.transpose(0, 2, 1, 3).reshape(b, n, heads * size))
