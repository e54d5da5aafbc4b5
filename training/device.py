"""What the run runs on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
from pathlib import Path

import torch

from training.config import TrainConfig, TrainingError


def choose_device(name: str) -> torch.device:
    """auto → cuda where there is one. Raises TrainingError for cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch sees no CUDA GPU here; use --device cpu, or check `nvidia-smi` and the driver")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto → bfloat16 where the hardware multiplies it: Turing and Volta (T4, RTX 20, V100) emulate it, slower than float32."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_multiplies_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether bfloat16 products are instructions of this CPU: torch emulates them on any AVX-512, slower than float32."""
    if platform.machine() == "x86_64":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepare(config: TrainConfig, device: torch.device) -> None:
    """Process-wide settings, before the first tensor of a run. Raises TrainingError."""
    if config.compile and device.type != "cuda":
        raise TrainingError("--compile needs a CUDA GPU: on a CPU the compiled step computed wrong shapes now and then")
    if device.type == "cpu":
        keep_freed_memory()
    elif config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Tell glibc to recycle large buffers instead of returning them: page faults cost a third of a CPU step otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4  # <malloc.h>
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def device_name(device: torch.device) -> str:
    """What the run ran on, as a person would say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name"))
        return f"CPU, {torch.get_num_threads()} threads, {model.split(':')[1].strip()}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def git_commit() -> str | None:
    """The commit of the code that trains (``-dirty`` if it was changed since), when it is a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
