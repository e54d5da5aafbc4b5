"""A training step of ours beside the original script's, alternating, in one run on one machine.

    python benchmarks/train_step.py [--rounds N] [--seconds S] [--device cpu]

The opponent restates the original script, its faults included: heads in a loop, each with a mask buffer and three projections of
its own; attention scaled by the width of the model; a final LayerNorm and an attention dropout that are defined and never used; a
batch that is gathered with a Python loop on the CPU; one learning rate, no clipping, no groups; float32. It is here to be timed,
and nothing else in the project imports it. Contenders take turns, a few steps each, so that whatever else the machine does
hits all of them; the figure is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import TrainConfig
from training.data import Text
from training.estimate import flops_per_token, measure_peak, synchronize
from training.machine import device_name
from training.presets import PRESETS
from training.run_directory import RunDirectory
from training.trainer import Trainer


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
    letters = sorted(set(text.text))
    ids = {c: i for i, c in enumerate(letters)}
    data = torch.tensor([ids[c] for c in text.text], dtype=torch.long)
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


def our_step(text: Text, config: TrainConfig) -> Callable[[], object]:
    """One step of ours, the look at the loss included."""
    trainer = Trainer(config, text, RunDirectory(Path("unused")))
    count = iter(range(10**9))
    log_every = 1 if trainer.device.type == "cpu" else config.log_interval

    def step() -> object:
        number = next(count)
        loss = trainer.step(number)
        return loss.item() if number % log_every == 0 else None

    return step


def measure(contenders: dict[str, Callable[[], object]], rounds: int, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per step of each round; the contenders take turns."""
    for step in contenders.values():
        for _ in range(4 if device.type == "cuda" else 1):
            step()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            synchronize(device)
            began = time.perf_counter()
            for _ in range(steps):
                step()
            synchronize(device)
            times[name].append((time.perf_counter() - began) / steps)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step beside the original script's, as a ratio.")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each contender (default: 8)")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn (default: 2; more on a GPU)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--baby", action="store_true", help="also nanoGPT's settings (slow on a CPU)")
    options = parser.parse_args()
    text = Text("".join(chr(33 + (i * i + i // 7) % 65) for i in range(1_115_394)), "", "generated", None)
    config = replace(PRESETS["original"], device=options.device)
    ours = {name: replace(PRESETS[name], device=options.device) for name in ("original", "default", *(["baby"] if options.baby else []))}
    trainer = Trainer(config, text, RunDirectory(Path("unused")))
    device, dtype = trainer.device, trainer.dtype
    contenders = {"the original script": original_step(text, config, device)} | {f"ours, {n}": our_step(text, c) for n, c in ours.items()}
    times = measure(contenders, options.rounds, options.steps, device)
    peak = measure_peak(device, dtype)
    base = statistics.median(times["the original script"])
    print(f"{device_name(device)}, torch {torch.__version__}, {dtype}; median of {options.rounds} turns of {options.steps} steps\n")
    print("| step | context | ms | range | tokens/s | MFU | the original script ÷ this |")
    print("|---|---|---|---|---|---|---|")
    for name, seconds in times.items():
        used = ours.get(name.removeprefix("ours, "), config)
        middle = statistics.median(seconds)
        utilisation = flops_per_token(used.model_config(65)) * used.tokens_per_step / middle / peak
        ratio = f"{base / middle:.2f}" if used.block_size == config.block_size else "–"
        spread = f"{min(seconds) * 1e3:,.0f} to {max(seconds) * 1e3:,.0f}"
        figures = (used.block_size, f"{middle * 1e3:,.0f}", spread, f"{used.tokens_per_step / middle:,.0f}", f"{utilisation:.0%}", ratio)
        print(f"| {name} | {' | '.join(map(str, figures))} |")


if __name__ == "__main__":
    main()
