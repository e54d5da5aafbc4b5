"""What a run will take, measured with a few of its real steps."""

from __future__ import annotations

import resource
import time

import torch

from training.evaluate import measure
from training.flops import flops_per_token, measure_peak, synchronize
from training.progress import duration
from training.trainer import Trainer

WARM, TIMED = 4, 6
"""Steps before the clock starts (a CUDA graph is captured in the fourth), and on it."""


def describe_cost(trainer: Trainer) -> str:
    """Parameters, FLOPs, memory, and the time for the whole run here. Writes nothing."""
    config, device = trainer.config, trainer.device
    for step in range(WARM):
        trainer.step(step)
    synchronize(device)
    began = time.perf_counter()
    for step in range(WARM, WARM + TIMED):
        trainer.step(step)
    synchronize(device)
    seconds = (time.perf_counter() - began) / TIMED
    began = time.perf_counter()
    measure(trainer.served, trainer.data, num_tokens=config.eval_tokens)
    validation = time.perf_counter() - began
    flops = flops_per_token(trainer.model.config) * config.tokens_per_step
    total = config.max_iters * seconds + -(-config.max_iters // config.eval_interval) * validation
    utilisation = flops / seconds / measure_peak(device, trainer.dtype)
    train, val, vocabulary = len(trainer.data.train), len(trainer.data.val), trainer.tokenizer.vocab_size
    share = validation / (config.eval_interval * seconds + validation)
    dtype = str(trainer.dtype).removeprefix("torch.")
    rows = {
        "parameters": f"{trainer.model.num_parameters:,}",
        "text": f"{train:,} tokens to train on, {val:,} to validate with, {vocabulary} distinct",
        "passes over the text": f"{config.max_iters * config.tokens_per_step / train:.1f}",
        "a step": f"{config.tokens_per_step:,} tokens, {flops / 1e12:.3f} TFLOP, {seconds * 1e3:,.1f} ms",
        "speed": f"{config.tokens_per_step / seconds:,.0f} tokens/s, MFU {utilisation:.0%} of a large matrix product here",
        "a validation": f"{validation:.1f} s, {share:.1%} of the time",
        "memory": memory(device),
        "the whole run": f"{config.max_iters:,} steps in about {duration(total)} on {device.type}, {dtype}",
    }
    return "\n".join(f"{name:>20}: {value}" for name, value in rows.items())


def memory(device: torch.device) -> str:
    """The most memory taken so far."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB of the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
