"""A CUDA driver without a GPU (``emulator/fake_cuda.cpp``), built for a model's shape. What it computes is right, and slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.worker.cuda import driver
from service.worker.cuda.launches import Plan
from tests.gpu.emulated import SOURCE, arguments_for, build

CUDA_H = [f"-I{path}" for path in Path("/usr/local").glob("cuda/include") if (path / "cuda.h").is_file()]
"""Where there is one, it checks every signature."""


def build_fake(plan: Plan, folder: Path) -> Path:
    """``folder/libcuda.so.1``: with the folder in LD_LIBRARY_PATH a process takes it for the driver."""
    built = build(["-shared", "-fPIC", *arguments_for(plan, SOURCE), *CUDA_H], "fake_cuda.cpp", "-libcuda.so")
    path = folder / "libcuda.so.1"
    path.write_bytes(built.read_bytes())
    return path


@contextmanager
def fake_driver(library: Path, faults: str = "") -> Iterator[None]:
    """This process's driver, with faults (see ``fake_cuda.cpp``); it begins anew each time."""
    copy = library.with_name(f"libcuda-{sum(1 for _ in library.parent.iterdir())}.so")
    copy.write_bytes(library.read_bytes())  # a library of another path is loaded again, with nothing in its memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "LIBRARY", str(copy))
        patch.setenv("CUDA_FAKE", faults)
        yield
