"""A training step of ours beside the original script's and beside nanoGPT's, alternating, in one run on one machine.

    python benchmarks/train_step.py [--rounds N] [--steps N] [--device cpu] [--baby]

Contenders (`benchmarks/opponents.py` has the others) take turns, a few steps each, so that whatever else the machine does hits all
of them; the figure is the ratio of the medians to the opponent with the same sizes.
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

from benchmarks.opponents import nanogpt_step, original_step
from training.config import TrainConfig
from training.data import Text
from training.device import device_name
from training.flops import flops_per_token, measure_peak, synchronize
from training.presets import PRESETS
from training.run_directory import RunDirectory
from training.trainer import Trainer

Contender = tuple[Callable[[], object], str, str | None]
"""Its step, whose sizes it has, and whom it is held against."""


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
    text = Text.of("".join(chr(33 + (i * i + i // 7) % 65) for i in range(1_115_394)), "generated")
    configs = {name: replace(PRESETS[name], device=options.device) for name in ("original", "default", "baby")}
    trainer = Trainer(configs["original"], text, RunDirectory(Path("unused")))
    device, dtype = trainer.device, trainer.dtype
    contenders: dict[str, Contender] = {
        "the original script": (original_step(text, configs["original"], device), "original", None),
        "ours, `original`": (our_step(text, configs["original"]), "original", "the original script"),
        "ours, `default`": (our_step(text, configs["default"]), "default", None),
    }
    if options.baby:
        contenders["nanoGPT"] = (nanogpt_step(text, configs["baby"], device), "baby", None)
        contenders["ours, `baby`"] = (our_step(text, configs["baby"]), "baby", "nanoGPT")
    times = measure({name: step for name, (step, _, _) in contenders.items()}, options.rounds, options.steps, device)
    peak = measure_peak(device, dtype)
    print(f"{device_name(device)}, torch {torch.__version__}, {dtype}; median of {options.rounds} turns of {options.steps} steps\n")
    print("| step | context | ms | range | tokens/s | MFU | times as fast as |\n|---|---|---|---|---|---|---|")
    for name, (_, preset, opponent) in contenders.items():
        used, seconds, middle = configs[preset], times[name], statistics.median(times[name])
        utilisation = flops_per_token(used.model_config(65)) * used.tokens_per_step / middle / peak
        ratio = f"{statistics.median(times[opponent]) / middle:.2f} × {opponent}" if opponent else "–"
        spread = f"{min(seconds) * 1e3:,.0f} to {max(seconds) * 1e3:,.0f}"
        figures = (used.block_size, f"{middle * 1e3:,.0f}", spread, f"{used.tokens_per_step / middle:,.0f}", f"{utilisation:.0%}", ratio)
        print(f"| {name} | {' | '.join(map(str, figures))} |")


if __name__ == "__main__":
    main()
