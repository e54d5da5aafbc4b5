"""`arithmetic.h`, its twin in numpy, and the constants that both must give."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.exact import arithmetic as ar
from model.exact.probes import PROBES, SUMS, reference_sum

KERNELS = Path(__file__).parents[2] / "service" / "worker" / "kernels"
FLAGS = ["-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
PROGRAM = """
#include <stdio.h>
#ifdef FLUSH_TO_ZERO
#include <xmmintrin.h>
#endif
#include "probe.h"
int main(void) {
#ifdef FLUSH_TO_ZERO
  _mm_setcsr(_mm_getcsr() | 0x8040); /* results and arguments that are subnormal count as 0 */
#endif
  for (int f = 0; f < EX_PROBES; f++) {
    ex_u64 sum = 0;
    for (ex_u64 i = 0; i < EX_PROBE_ARGUMENTS; i++) sum += ex_probe(f, i);
    printf("%llu\\n", sum);
  }
}
"""
COMPILERS = [
    "gcc -O0",
    "gcc -O3 -march=native",
    "gcc -O3 -fsanitize=undefined -fno-sanitize-recover",
    "g++ -x c++ -std=c++17 -O2",
    "clang -O3 -march=native",
    "aarch64-linux-gnu-gcc -O2 -static",
]


def run_probes(command: list[str], folder: Path) -> list[int]:
    """The sums of a build of the header, under qemu where it is for another processor."""
    (folder / "probe.c").write_text(PROGRAM)
    built = [*command, *FLAGS, "-I", str(folder), "-I", str(KERNELS), str(folder / "probe.c"), "-o", str(folder / "probe")]
    subprocess.run(built, check=True, capture_output=True, text=True, timeout=120)
    emulator = ["qemu-aarch64-static"] if command[0].startswith("aarch64") else []
    result = subprocess.run([*emulator, str(folder / "probe")], check=True, capture_output=True, text=True, timeout=240)
    return [int(line) for line in result.stdout.split()]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_compiler_gives_the_known_answers(compiler: str, tmp_path: Path) -> None:
    command = compiler.split()
    if not shutil.which(command[0]) or (command[0].startswith("aarch64") and not shutil.which("qemu-aarch64-static")):
        pytest.skip(f"{command[0]} or its emulator is not installed")
    assert run_probes(command, tmp_path) == list(SUMS.values())


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_flush_to_zero_changes_nothing(tmp_path: Path) -> None:
    """Any library that is loaded into the process may switch it on."""
    header = subprocess.run(["gcc", "-E", "-x", "c", "-"], input="#include <xmmintrin.h>", capture_output=True, text=True, check=False)
    if header.returncode:
        pytest.skip("not an x86 processor")
    assert run_probes(["gcc", "-O2", "-DFLUSH_TO_ZERO"], tmp_path) == list(SUMS.values())


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (("0x1.715476p+0f", "0x1.715478p+0f"), {"exp", "count", "gelu"}),
        (
            ("return ex_add(ex_mul(a, b), c);", "return (float)((double)a * b + c);"),
            {"exp", "count", "gelu", "norm", "linear", "linear_wide"},
        ),
        (("ex_div(levels, a); }\nEX_FN float ex_scale", "ex_mul(levels, ex_div(1, a)); }\nEX_FN float ex_scale"), {"inverse", "quantise"}),
        (("* (ex_u64)total) >> 53", "* (ex_u64)total) >> 54"), {"target", "nucleus"}),
        (("ex_from_long(v), ex_from_int(c)", "ex_from_long(v), ex_from_int(c - 1)"), {"rsigma"}),
    ],
)
def test_a_wrong_last_bit_is_found_by_name(change: tuple[str, str], wrong: set[str], tmp_path: Path) -> None:
    source = (KERNELS / "arithmetic.h").read_text()
    assert change[0] in source
    (tmp_path / "arithmetic.h").write_text(source.replace(*change))
    shutil.copy(KERNELS / "probe.h", tmp_path)
    sums = run_probes(["gcc", "-O2"], tmp_path)
    assert {name for name, got in zip(SUMS, sums, strict=True) if got != SUMS[name]} == wrong


@pytest.mark.parametrize("number", range(len(PROBES)), ids=[probe.name for probe in PROBES])
def test_numpy_gives_the_known_answers(number: int) -> None:
    assert list(SUMS)[number] == PROBES[number].name
    assert reference_sum(number) == SUMS[PROBES[number].name]


def test_exp_and_log_are_those_of_mathematics() -> None:
    x = -np.linspace(0, 40, 100_001)
    exact = np.array([math.exp(value) for value in x])
    assert np.abs(ar.exp64(x) / exact - 1).max() < 1e-14
    single = x.astype(np.float32)
    exact32 = np.array([math.exp(value) for value in single.tolist()])
    error = np.abs(ar.exp(single) / exact32 - 1)
    assert error.max() < 4e-6
    assert error[: len(x) // 40].max() < 4e-7  # between -1 and 0
    assert ar.exp(np.array([0, -40.1, -np.inf], np.float32)).tolist() == [1, 0, 0]
    y = 10.0 ** np.linspace(-300, 300, 10_001)
    logs = np.array([math.log(value) for value in y])
    assert np.abs(ar.log64(y) - logs).max() <= 1e-15 * np.abs(logs).max()


def test_gelu_is_that_of_torch() -> None:
    import torch

    x = np.linspace(-30, 30, 10_001).astype(np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double(), approximate="tanh").numpy()
    assert np.abs(ar.gelu(x) - expected).max() < 2e-6
    assert np.isfinite(ar.gelu(np.array([1e30, -1e30], np.float32))).all()


@given(st.integers(-32639, 32639))
def test_two_signed_bytes_hold_an_activation_of_16_bits(q: int) -> None:
    high, low = (int(digit) for digit in ar.digits(np.array(q, np.float32)))
    assert 256 * high + low == q
    assert -127 <= high <= 127
    assert -128 <= low <= 127


@pytest.mark.parametrize("levels", [ar.SIGNED, ar.UNSIGNED, ar.WIDE])
def test_no_mantissa_leads_beyond_the_levels(levels: np.float32) -> None:
    """The largest magnitude of a vector must become exactly the largest level, whatever its last bits."""
    a = (np.arange(1 << 23, dtype=np.uint32) | 0x3F800000).view(np.float32)
    assert (np.rint(a * ar.inverse(a, levels)) == levels).all()


def test_what_is_too_small_is_zero() -> None:
    q, scale = ar.quantise(np.array([[2.0**-41, -(2.0**-42)], [2.0**-40, 0]], np.float32))
    assert q.tolist() == [[0, 0], [127, 0]]
    assert scale[0, 0] == 0
    assert scale[1, 0] > 0
    assert not np.signbit(ar.parameter(np.array([-0.0, -1e-20, 1e-20], np.float32))).any()
