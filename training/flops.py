"""How much a run will cost: arithmetic from the configuration, time from this machine."""

from __future__ import annotations

import time

import torch

from model.config import GPTConfig


def flops_per_token(config: GPTConfig) -> int:
    """FLOPs of a training step for one token: 6 for each weight that multiplies, and attention's 12·L·H·D·T.

    The described system at a context of 128: 25.6 MFLOP, so 0.21 TFLOP for a batch of 64 sequences (PaLM, appendix B).
    """
    embeddings = (config.vocab_size + config.block_size) * config.n_embd
    return 6 * (config.num_parameters - embeddings) + 12 * config.n_layer * config.attn_width * config.block_size


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here, the best of a few: what utilisation is measured against."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(size, size, device=device, dtype=dtype), torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(6):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
