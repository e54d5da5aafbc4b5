"""``python -m benchmarks.prefixes [CHECKPOINT]``: eight choices of one prompt against one, with and without shared prefixes.

Without a checkpoint it also measures the shape of GPT-2 (12 layers, 768 wide, a context of 1,024) with random weights. The figure is the
time until every choice has its first token, engine alone, the median of some runs.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.gpt2_shape import gpt2_shape
from model.checkpoint.files import Checkpoint, read_checkpoint
from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.native import NativeRunner

PRETRAINED = Path(__file__).parents[1] / "model" / "pretrained"
CHOICES = 8


def first_tokens_s(core: EngineCore, prompt: list[int], choices: int) -> float:
    """Seconds until each of several choices of a prompt has its first token."""
    for number in range(choices):
        core.submit(Submit(number, number, prompt, [], SamplingParams(max_new_tokens=1, seed=number)))
    began = time.perf_counter()
    while core.has_work:
        core.step()
    return time.perf_counter() - began


def measure(checkpoint: Checkpoint, length: int, runs: int, *, unshared: bool) -> None:
    """Print the medians for one model."""
    runner = NativeRunner(checkpoint, rows=CHOICES, threads=1)
    rng = np.random.default_rng(2)
    for shares in (False, True) if unshared else (True,):
        core = EngineCore(runner, block_size=checkpoint.config.block_size, stride=1, start_token=0)
        core.scheduler.prefixes.enabled = shares
        times: dict[int, list[float]] = {1: [], CHOICES: []}
        for _ in range(runs):
            for choices, found in times.items():  # another prompt each time: none is there from before
                found.append(first_tokens_s(core, rng.integers(0, checkpoint.config.vocab_size, length).tolist(), choices))
        one, all_of_them = (statistics.median(found) for found in times.values())
        print(
            f"{checkpoint.path.name}, prompt of {length}, {'shared' if shares else 'not shared'}: first tokens of 1 after "
            f"{one * 1e3:.1f} ms, of {CHOICES} after {all_of_them * 1e3:.1f} ms, {all_of_them / one:.2f} times as long",
            flush=True,
        )
    runner.close()


def main() -> None:
    """The command."""
    measure(read_checkpoint(sys.argv[1] if len(sys.argv) > 1 else PRETRAINED), 200, 5, unshared=True)
    if len(sys.argv) == 1:
        measure(gpt2_shape(vocab_size=256), 900, 1, unshared=False)  # unshared, it takes minutes


if __name__ == "__main__":
    main()
