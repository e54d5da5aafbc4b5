"""What these tests need: g++ and an x86-64 processor for the emulator, NVRTC for what a compiler makes of the kernels. No card."""

from __future__ import annotations

import platform
import shutil

import pytest

from service.worker.cuda.compiler import CompileError, Nvrtc
from tests.gpu.emulated import SOURCE


def missing_for(target: str) -> str | None:
    """Why a target cannot be emulated here, if so."""
    if shutil.which("g++") is None:
        return "the emulator needs g++"
    if platform.machine() not in ("x86_64", "AMD64"):
        return "the emulator switches stacks on x86-64 only"
    if target == SOURCE:
        return None
    try:
        Nvrtc()
    except CompileError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run: tests say what they need with ``@pytest.mark.needs("compute_75")``."""
    reasons: dict[str, str | None] = {}
    for item in items:
        for marker in item.iter_markers("needs"):
            target = marker.args[0]
            if target not in reasons:
                reasons[target] = missing_for(target)
            if (reason := reasons[target]) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
