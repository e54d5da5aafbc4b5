"""What the engine's shortcuts cost in nats per character on the validation text, and what they win in speed.

    python -m benchmarks.quality --data tinyshakespeare.txt [--checkpoint DIR] [--every 16]

1. Number formats: the exact full-validation loss through the native kernels, beside PyTorch's in float32.
2. Strides of the `anchored` window: loss of the same targets, each predicted through the window that a long stream would have
   there, beside `sliding` (stride 1); and tokens/s of a long stream beside one inside the context.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from model import load_checkpoint
from model.checkpoint.files import read_checkpoint
from model.gpt import GPT
from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.interface import PrefillChunk
from service.worker.runners.native import NativeRunner
from training.evaluate import full_loss

ROOT = Path(__file__).resolve().parent.parent


def native_loss(runner: NativeRunner, ids: list[int], block: int) -> float:
    """The protocol of `training.evaluate.full_loss`, through the engine's kernels."""
    total = 0.0
    for start in range(0, len(ids) - 1, block):
        window, targets = ids[start : start + block][: len(ids) - 1 - start], ids[start + 1 : start + block + 1]
        x = runner.logits([PrefillChunk(0, 0, window)]).astype(np.float64)
        x -= x.max(1, keepdims=True)
        total -= (x[np.arange(len(window)), targets[: len(window)]] - np.log(np.exp(x).sum(1))).sum()
    return total / (len(ids) - 1)


@torch.no_grad()
def window_loss(model: GPT, ids: torch.Tensor, stride: int, every: int) -> float:
    """Mean loss of every ``every``-th target beyond the first context, each through the window that stride gives it."""
    block = model.config.block_size
    losses = []
    starts = range(stride, len(ids) - block, stride) if stride > 1 else range(1, len(ids) - block, every)
    wanted = set(range(block + 1, len(ids), every))
    batch: list[int] = []
    for start in [*starts, None]:
        if start is not None:
            batch.append(start)
        if batch and (start is None or len(batch) == 32):
            windows = torch.stack([ids[s : s + block + 1].long() for s in batch])
            logits = model(windows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="none").view(len(batch), block)
            for row, s in enumerate(batch):  # a window of length n predicts target s + n; lengths block − stride + 1 … block are used
                losses += [float(loss[row, n - 1]) for n in range(block - stride + 1, block + 1) if s + n in wanted]
            batch = []
    return sum(losses) / len(losses)


def speed(core: EngineCore, streams: int, tokens: int, stride: int) -> float:
    """Tokens/s of the engine alone."""
    params = SamplingParams(max_new_tokens=tokens, stride=stride)
    began = time.perf_counter()
    for number in range(streams):
        core.submit(Submit(number, number, [1 + number % 60], [], params))
    while core.has_work:
        core.step()
    return streams * tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "model" / "pretrained")
    parser.add_argument("--every", type=int, default=17, help="a prime, so that every place of every window is sampled")
    options = parser.parse_args()
    loaded, checkpoint = load_checkpoint(options.checkpoint), read_checkpoint(options.checkpoint)
    block = checkpoint.config.block_size
    ids = loaded.tokenizer.encode(options.data.read_text(encoding="utf-8"))
    val = torch.tensor(ids[int(0.9 * len(ids)) :])

    print(f"| format | full-validation loss, context {block} |\n|---|---|")
    print(f"| PyTorch float32 | {full_loss(loaded.model, val):.5f} |")
    runner = NativeRunner(checkpoint, rows=64, threads=1)
    print(f"| exact | {native_loss(runner, val.tolist(), block):.5f} |")
    core = EngineCore(runner, block_size=block, stride=block, start_token=0)
    inside = {streams: speed(core, streams, block, block) for streams in (1, 64)}
    print(f"\ninside the context: {inside[1]:,.0f} tokens/s for one stream, {inside[64]:,.0f} for 64\n")
    print("| stride | loss | against sliding | 1 stream past the context | 64 streams past the context |\n|---|---|---|---|---|")
    reference = None
    for stride in (1, block // 8, block // 4, block // 2, 3 * block // 4, 7 * block // 8, block):
        loss = window_loss(loaded.model, val, stride, options.every)
        reference = loss if reference is None else reference
        length = block + (8 if stride == 1 else 2 * block)
        cells = []
        for streams in (1, 64):
            seconds = streams * length / speed(core, streams, length, stride) - streams * block / inside[streams]
            cells.append(f"{streams * (length - block) / seconds / inside[streams]:.0%}")
        print(f"| {stride} | {loss:.4f} | {loss - reference:+.4f} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
