"""What NVRTC and ptxas make of the kernels: no spills, within a budget, no float operation that could be fused."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from model.config import GPTConfig
from service.worker.cuda.compiler import ARCHITECTURES, Nvrtc
from service.worker.cuda.launches import Plan

PTX = "compute_75"
REGISTERS, SHARED_BYTES = 128, 48 << 10
"""A block has 256 threads, so at least two share a multiprocessor; more shared memory would have to be asked for."""
SHAPES = {
    "shipped": GPTConfig(vocab_size=65),
    "GPT-2 124M": GPTConfig(
        vocab_size=50257,
        block_size=1024,
        n_layer=12,
        n_head=12,
        n_embd=768,
        activation="gelu_tanh",
        qkv_bias=True,
        arithmetic="w8a16",
    ),
}
WHOLE = os.environ.get("FOLIO_GPU_PROOF") == "whole"
IN_CI = [("shipped", "sm_75"), ("shipped", "sm_90"), ("GPT-2 124M", "sm_120")]
CASES = [(shape, arch) for shape in SHAPES for arch in ARCHITECTURES] if WHOLE else IN_CI


def kernel_reports(log: str) -> dict[str, str]:
    """Kernel → what ptxas said of it."""
    parts = re.split(r"Compiling entry function '(\w+)'", log)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.needs(PTX)
@pytest.mark.parametrize(("shape", "arch"), CASES)
def test_no_spills_and_within_the_budget(shape: str, arch: str) -> None:
    plan, nvrtc = Plan(SHAPES[shape]), Nvrtc()
    assert nvrtc.compile("kernel.cu", arch, [*plan.defines(), "--ptxas-options=-v"])[:4] == b"\x7fELF"
    reports = kernel_reports(nvrtc.log)
    assert set(reports) == set(plan.kernels())
    for kernel, said in reports.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said, kernel
        registers, shared = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes smem", said)
        assert registers, said
        assert int(registers[1]) <= REGISTERS, kernel
        assert shared is None or int(shared[1]) <= SHARED_BYTES, kernel


@pytest.mark.needs(PTX)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_float_operation_rounds_to_nearest_by_itself(shape: str) -> None:
    """No fma, nothing approximate, no flush to zero, and no operation that ptxas may fuse: those have no ``.rn``."""
    nvrtc = Nvrtc()
    ptx = nvrtc.compile("kernel.cu", PTX, Plan(SHAPES[shape]).defines()).decode() + nvrtc.compile("probe.cu", PTX, []).decode()
    operation = r"^\s+(?:@!?%p\d+ )?((?:add|sub|mul|fma|mad|div|sqrt|rsqrt|rcp|ex2|lg2|sin|cos|tanh)\.[\w.]*f(?:32|64))"
    found = Counter(re.findall(operation, ptx, re.MULTILINE))
    assert found["mul.rn.f32"] > 10
    assert found["div.rn.f64"] > 1
    assert [name for name in found if ".rn" not in name or name.startswith(("fma", "mad")) or "approx" in name] == []
    assert ".ftz" not in ptx


def test_all_architectures_are_those_of_cuda_13() -> None:
    """From Turing on; what a card of another architecture gets is a line that names it."""
    assert ARCHITECTURES[0] == "sm_75"
    assert ARCHITECTURES[-1] == "sm_120"
