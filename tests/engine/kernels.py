"""The engines that this machine can run, and kernels for processors that it has not."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import pytest

from service.worker.kernels import build
from service.worker.runners import native
from service.worker.runners.interface import RunnerUnavailable
from service.worker.runners.native import Kernel

EMULATED = Path(__file__).parent / "emulated"


def native_sets() -> list[str]:
    """Instruction sets of the native kernels that run here, the fastest first; none without a library."""
    found = []
    for name in build.instruction_sets():
        try:
            found.append(Kernel(name).cpu)
        except RunnerUnavailable:
            continue
    return found


NATIVE = native_sets()
ENGINES = [*NATIVE, "torch", "reference"]


@functools.cache
def emulated_library(folder: Path) -> ctypes.CDLL:
    """Kernels for AVX-512 and AVX-VNNI whose instructions are functions in C: slow, and the same bits."""
    flags = ("-O1", "-fno-inline-small-functions", "-mavx2", f"-I{EMULATED}", "-include", "immintrin.h")
    sets = {"avx512": (*flags, "-DEMULATE_AVX512"), "avxvnni": (*flags, "-DEMULATE_AVXVNNI"), "generic": ("-DGENERIC",)}
    build.compile_all(build.compiler(), sets, folder / "emulated.so")
    return ctypes.CDLL(str(folder / "emulated.so"))


def use_emulated(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every kernel that is made in this test is one of `emulated_library`, whatever the processor has."""
    library = emulated_library(folder)
    monkeypatch.setattr(native, "load", lambda: library)
    monkeypatch.setattr(native, "choose", lambda library, cpu: cpu)
