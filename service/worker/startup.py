"""From a Start message to an engine that has passed its self-test."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from model.checkpoint.files import Checkpoint, read_checkpoint
from model.checkpoint.manifest import MANIFEST
from service.worker import selftest
from service.worker.core import EngineCore
from service.worker.kernels.build import NativeUnavailable, cpu_features
from service.worker.messages import Ready, Start
from service.worker.runners.interface import Runner
from service.worker.runners.native import NativeRunner

ENGINE_VERSION = 1
"""Counted up whenever a change to the engine can change a byte."""
CPU_BATCH, CUDA_BATCH = 64, 256
STRIDE_FRACTION = 0.875
"""Default stride as a part of the context; docs/engine.md has the measurement."""


class UnusableError(RuntimeError):
    """The settings ask for what this machine has not; the message says what would help."""


def default_stride(block_size: int) -> int:
    """The stride of ``anchored``."""
    return max(1, int(block_size * STRIDE_FRACTION))


def cuda_present() -> bool:
    """Whether an NVIDIA driver shows a GPU, asked without torch, whose import takes seconds."""
    if not (glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg")):
        return False
    import torch

    return torch.cuda.is_available()


def default_threads() -> int:
    """All cores that this process may use but one, which the HTTP side needs, and at most 8: the model is too small to feed more.

    Measured on two cores: over HTTP one thread is as fast as two, and its latencies are steadier.
    """
    return max(1, min(8, len(os.sched_getaffinity(0)) - 1))


def build_runner(start: Start, checkpoint: Checkpoint, say: Callable[[str], None]) -> tuple[Runner, str]:
    """The runner that the settings and the machine call for, and what would make it faster. Raises UnusableError."""
    cuda = start.device == "cuda" or (start.device == "auto" and cuda_present())
    if cuda:
        from service.worker.runners.pytorch import TorchRunner

        if not cuda_present():
            raise UnusableError("device cuda: no CUDA GPU is visible here; check nvidia-smi, or choose --device cpu")
        say("capturing CUDA graphs")
        dtype = "bfloat16" if start.dtype == "auto" else start.dtype
        return TorchRunner(checkpoint, rows=start.max_batch or CUDA_BATCH, dtype=dtype, device="cuda"), ""
    rows, threads, note = start.max_batch or CPU_BATCH, start.threads or default_threads(), ""
    if start.kernels != "torch":
        dtype = start.dtype if start.dtype != "auto" else "bfloat16" if "avx512_bf16" in cpu_features() else "float32"
        try:
            say("preparing the native kernels")
            return NativeRunner(checkpoint, rows=rows, dtype=dtype, threads=threads, cache=Path(start.cache)), ""
        except NativeUnavailable as error:
            if start.kernels == "native":
                raise UnusableError(f"kernels native: {error}") from None
            note = str(error)
    import torch

    from service.worker.runners.pytorch import TorchRunner

    say("preparing PyTorch")
    torch.set_num_threads(threads)
    return TorchRunner(checkpoint, rows=rows, dtype="float32" if start.dtype == "auto" else start.dtype, device="cpu"), note


def load(start: Start, say: Callable[[str], None]) -> tuple[EngineCore, Ready]:
    """Read, build, self-test. Raises CheckpointError, UnusableError, SelfTestError, MemoryError."""
    say("reading the checkpoint")
    checkpoint = read_checkpoint(start.checkpoint, start.trusted_keys)
    runner, note = build_runner(start, checkpoint, say)
    stride = min(start.stride or default_stride(checkpoint.config.block_size), checkpoint.config.block_size)
    core = EngineCore(runner, block_size=checkpoint.config.block_size, stride=stride, start_token=checkpoint.start)
    say("self-test")
    selftest.run(core, checkpoint)
    core.steps = 0
    ready = Ready(
        id=checkpoint.id,
        fingerprint=fingerprint(checkpoint, runner, stride),
        config=checkpoint.config.to_json(),
        tokenizer=checkpoint.tokenizer.to_json(),
        manifest=checkpoint.manifest,
        created=int((Path(start.checkpoint) / MANIFEST).stat().st_mtime),
        num_parameters=checkpoint.config.num_parameters,
        stride=stride,
        device=runner.device,
        dtype=runner.dtype,
        kernels=runner.kernels,
        max_batch=runner.rows,
        memory_bytes=runner.memory_bytes,
        note=note,
    )
    return core, ready


def fingerprint(checkpoint: Checkpoint, runner: Runner, stride: int) -> str:
    """32 hex digits over everything that can change a byte."""
    parts = {
        "checkpoint": checkpoint.id,
        "engine": ENGINE_VERSION,
        "window": "anchored",
        "stride": stride,
        "dtype": runner.dtype,
        "tokenizer": checkpoint.tokenizer.version,
        "kernels": runner.kernels,  # torch's version and the capability, or the hash of the compiled kernel
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
