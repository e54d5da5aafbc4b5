"""The decoder-only Transformer: token ids in, logits out.

Shape letters: B sequences, N tokens of this pass, T = block_size, C = n_embd, H heads, D = head size, V vocabulary.
Pre-LayerNorm blocks as in GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), learned absolute
positions, attention scaled by D**-0.5 (Vaswani et al. 2017, eq. 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GPTConfig
from model.dropout import Dropout, dropout_attention


class MultiHeadAttention(nn.Module):
    """Causal self-attention over H heads of D features; C need not equal H·D."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.head_size = config.n_head, config.head_size
        self.qkv = nn.Linear(config.n_embd, 3 * config.attn_width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.attn_width, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.n_head, self.head_size).permute(2, 0, 3, 1, 4)  # each (B, H, N, D)
        y = self.attend(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, n, self.n_head * self.head_size))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, N, D) queries over the keys and values up to each one's own place."""
        scale = self.head_size**-0.5
        p = self.dropout if self.training else 0.0
        on_cpu = q.device.type == "cpu"
        if p and on_cpu:
            return dropout_attention(q, k, v, scale, p)
        pad = 0 if on_cpu else -self.head_size % 8  # a GPU's fast kernels want multiples of 8; zeros change nothing
        if pad:
            q, k, v = F.pad(q, (0, pad)), F.pad(k, (0, pad)), F.pad(v, (0, pad))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True, scale=scale)
        return y[..., : self.head_size]


class MLP(nn.Module):
    """C → 4C → C with one non-linearity."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy and added back to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = MultiHeadAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        x = x + self.dropout(self.attn(self.ln_1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.ln_2(x)))
        return out


class GPT(nn.Module):
    """The whole model. ``GPT(config)(ids)`` maps token ids (B, N), N ≤ T, to logits (B, N, V)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """N(0, 0.02) for matrices and embeddings, zero biases; residual projections by 1/√(2L) smaller (GPT-2, §2.3)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith(("attn.proj", "mlp.down"))
                module.weight.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()

    def set_dropout(self, p: float) -> None:
        """Give every place that drops while training, attention included, the probability ``p``."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.p = p
            elif isinstance(module, MultiHeadAttention):
                module.dropout = p

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) token ids → (B, N, V) logits. Raises ValueError when N exceeds the context."""
        if ids.shape[1] > self.config.block_size:
            raise ValueError(f"{ids.shape[1]} tokens do not fit the context of {self.config.block_size}")
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits
