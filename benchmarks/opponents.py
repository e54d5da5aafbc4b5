"""What a training step of ours is timed against. Nothing else in the project imports this.

*The original script*, its faults included: heads in a loop, each with a mask buffer and three projections of its own; attention
scaled by the width of the model; a final LayerNorm and an attention dropout that are defined and never used; a batch that is
gathered with a Python loop on the CPU; one learning rate, no clipping, no groups; float32.

*nanoGPT* (github.com/karpathy/nanoGPT, MIT) as its README runs ``config/train_shakespeare_char.py``: fused attention, no biases, tied
weights, two parameter groups, clipping; on a GPU bfloat16 and ``torch.compile``, on a CPU float32 and neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import TrainConfig
from training.data import Text


class OneHead(nn.Module):
    def __init__(self, width: int, size: int, context: int, dropout: float) -> None:
        super().__init__()
        self.key = nn.Linear(width, size, bias=False)
        self.query = nn.Linear(width, size, bias=False)
        self.value = nn.Linear(width, size, bias=False)
        self.register_buffer("mask", torch.ones(context, context).tril())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, width = x.shape[1:]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * width**-0.5  # fault: the width, not the head size
        scores = scores.masked_fill(self.get_buffer("mask")[:n, :n] == 0, float("-inf"))
        weights: Tensor = self.dropout(F.softmax(scores, dim=-1))
        out: Tensor = weights @ self.value(x)
        return out


class HeadsInALoop(nn.Module):
    def __init__(self, heads: int, width: int, context: int, dropout: float) -> None:
        super().__init__()
        size = width // heads
        self.heads = nn.ModuleList(OneHead(width, size, context, dropout) for _ in range(heads))
        self.proj = nn.Linear(heads * size, width)
        self.dropout = nn.Dropout(dropout)  # fault: never used

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(torch.cat([head(x) for head in self.heads], dim=-1))
        return out


class OriginalBlock(nn.Module):
    def __init__(self, heads: int, width: int, context: int, dropout: float) -> None:
        super().__init__()
        self.attention = HeadsInALoop(heads, width, context, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.Dropout(dropout))
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class OriginalModel(nn.Module):
    def __init__(self, vocabulary: int, config: TrainConfig) -> None:
        super().__init__()
        width, context = config.n_embd, config.block_size
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(OriginalBlock(config.n_head, width, context, config.dropout) for _ in range(config.n_layer)))
        self.norm = nn.LayerNorm(width)  # fault: never used
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        logits = self.head(self.blocks(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def original_step(text: Text, config: TrainConfig, device: torch.device) -> Callable[[], object]:
    """One step of the original script."""
    letters = text.alphabet
    ids = {c: i for i, c in enumerate(letters)}
    data = torch.tensor([ids[c] for c in "".join(text.chunks())], dtype=torch.long)
    data = data[: int(0.9 * len(data))]
    model = OriginalModel(len(letters), config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    size = config.block_size

    def step() -> None:
        starts = torch.randint(len(data) - size, (config.batch_size,))
        x = torch.stack([data[i : i + size] for i in starts]).to(device)
        y = torch.stack([data[i + 1 : i + size + 1] for i in starts]).to(device)
        loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


class NanoAttention(nn.Module):
    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in self.qkv(x).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        out: Tensor = self.dropout(self.proj(y.transpose(1, 2).reshape(b, t, c)))
        return out


class NanoBlock(nn.Module):
    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = NanoAttention(heads, width, dropout)
        up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.mlp = nn.Sequential(up, nn.GELU(), down, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class NanoModel(nn.Module):
    def __init__(self, vocabulary: int, config: TrainConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(config.block_size, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*(NanoBlock(config.n_head, width, config.dropout) for _ in range(config.n_layer)))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.dropout(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def nanogpt_step(text: Text, config: TrainConfig, device: torch.device) -> Callable[[], object]:
    """One step of nanoGPT with the sizes of ``config``."""
    letters = text.alphabet
    ids = {c: i for i, c in enumerate(letters)}
    data = torch.tensor([ids[c] for c in "".join(text.chunks())], dtype=torch.int32)
    data = data[: int(0.9 * len(data))]
    cuda = device.type == "cuda"
    model = NanoModel(len(letters), config).to(device).train()
    matrices, rest = [p for p in model.parameters() if p.dim() >= 2], [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=cuda)
    compiled = torch.compile(model) if cuda else model
    size = config.block_size

    def step() -> None:
        starts = torch.randint(len(data) - size, (config.batch_size,))
        x = torch.stack([data[i : i + size].long() for i in starts]).to(device, non_blocking=True)
        y = torch.stack([data[i + 1 : i + 1 + size].long() for i in starts]).to(device, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext():
            loss = compiled(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
