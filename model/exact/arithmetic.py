"""Every function of one element, on arrays: what `service/worker/kernels/arithmetic.h` says in C, under the same names.

No function here adds up more than a polynomial. float32 and float64 are IEEE's, every operation is rounded by itself to nearest even.
Whole numbers are kept in float arrays where that is exact, since BLAS multiplies those. docs/arithmetic.md has reasons and bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


EXP_DIGITS = "0x1.430912p-13 0x1.5d87fep-10 0x1.3b2ab6p-7 0x1.c6b08ep-5 0x1.ebfbe0p-3 0x1.62e430p-1 1"
EXP = [float.fromhex(c) for c in EXP_DIGITS.split()]
EXP64_DIGITS = """
0x1.c3bd650fc2986p-36 0x1.e8cac7351bb25p-32 0x1.e4cf5158b8ecap-28 0x1.b5253d395e7c4p-24 0x1.62c0223a5c824p-20 0x1.ffcbfc588b0c7p-17
0x1.430912f86c787p-13 0x1.5d87fe78a6731p-10 0x1.3b2ab6fba4e77p-7 0x1.c6b08d704a0c0p-5 0x1.ebfbdff82c58fp-3 0x1.62e42fefa39efp-1 1
"""
EXP64 = [float.fromhex(c) for c in EXP64_DIGITS.split()]
"""Coefficients of 2^f for -1/2 <= f <= 1/2, the highest first."""
LOG64 = [2 / k for k in range(21, 0, -2)]
"""2/21, 2/19, … 2/3, 2: the series of 2·atanh."""
SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")

SIGNED, UNSIGNED, WIDE = np.float32(127), np.float32(255), np.float32(32639)
"""Levels of what has either sign, of what is never negative, and of activations of 16 bits (127·256 + 127: two signed bytes)."""
TINY = np.float32(2.0**-40)
"""A maximum or a parameter below it counts as 0."""
UNITS = np.float32(4096)
"""The residual stream counts in units of 2^-12 …"""
BOUND = 2**25
"""… and stays within ± this many."""
EPS = np.float32(1e-5 * 2**24)


def rint(x: NDArray[Any]) -> Ints:
    """To the nearest integer, half to even."""
    whole: Ints = np.rint(x).astype(np.int64)
    return whole


def polynomial(coefficients: Sequence[float], x: NDArray[Any]) -> NDArray[Any]:
    """Horner's rule, each product and each sum rounded to the type of x."""
    p: NDArray[Any] = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = p * x + c
    return p


def exp(x: Floats) -> Floats:
    """e^x for x <= 0; exactly 1 at 0, exactly 0 below -40."""
    t = np.maximum(x, np.float32(-40)) * np.float32(float.fromhex("0x1.715476p+0"))
    n = np.rint(t)
    p = polynomial(EXP, t - n)
    power: Floats = (p.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)  # 2^n · p, by the exponent's bits
    return np.where(x >= -40, power, np.float32(0))


def exp64(x: Doubles) -> Doubles:
    """The same in float64."""
    t = np.maximum(x, -40.0) * float.fromhex("0x1.71547652b82fep+0")
    n = np.rint(t)
    return np.where(x >= -40, np.ldexp(polynomial(EXP64, t - n), n.astype(np.int32)), 0.0)


def log64(x: Doubles) -> Doubles:
    """Natural logarithm of a positive, normal float64."""
    m, e = np.frexp(x)
    low = m < SQRT_HALF
    m, e = np.where(low, m * 2, m), np.where(low, e - 1, e)
    s = (m - 1.0) / (m + 1.0)
    return e * float.fromhex("0x1.62e42fefa39efp-1") + polynomial(LOG64, s * s) * s


def inverse(a: Floats, levels: np.float32 | Floats) -> Floats:
    """What a value is multiplied with when it is quantised; ``a`` is the largest magnitude of its vector."""
    return np.where(a < TINY, np.float32(0), levels / np.maximum(a, TINY))


def scale(a: Floats, levels: np.float32 | Floats) -> Floats:
    """What a quantised value is multiplied with to get back."""
    return np.where(a < TINY, np.float32(0), a / levels)


def quantise(y: Floats, levels: np.float32 = SIGNED) -> tuple[Floats, Floats]:
    """Vectors (…, K) → whole numbers (…, K) of at most ``levels``, and a scale (…, 1) for each vector."""
    a = np.abs(y).max(-1, keepdims=True)
    return np.rint(y * inverse(a, levels)), scale(a, levels)


def digits(q: Floats) -> tuple[Floats, Floats]:
    """Whole numbers of 16 bits → (high, low) with q = 256·high + low and -128 <= low <= 127."""
    high = np.floor((q + np.float32(128)) / np.float32(256))
    return high, q - np.float32(256) * high


def parameter(w: Floats) -> Floats:
    """A bias or a parameter of LayerNorm as it is used; -0 becomes 0."""
    return np.where(np.abs(w) < TINY, np.float32(0), w)


def embedding(w: Floats) -> Ints:
    """An embedding's weights in units of the residual stream."""
    return rint(w * UNITS)


def bound(x: Ints) -> Ints:
    """The residual stream's limits."""
    bounded: Ints = np.clip(x, -BOUND, BOUND)
    return bounded


def residual(x: Ints, y: Floats) -> Ints:
    """x + y, rounded to a unit of the residual stream."""
    most = np.float32(2.0**26)
    return bound(x + rint(np.clip(y * UNITS, -most, most)))


def mean(s: Ints, c: int | Ints) -> Ints:
    """The mean of c integers with the sum s, rounded."""
    return rint(s.astype(np.float32) / np.asarray(c).astype(np.float32))


def rsigma(v: Ints, c: int | Ints) -> Floats:
    """1 / standard deviation; v is the sum of c squared deviations from the mean."""
    sigma: Floats = np.sqrt(v.astype(np.float32) / np.asarray(c).astype(np.float32) + EPS)
    return np.float32(1) / sigma


def norm(d: Ints, rsigma: Floats, weight: Floats, bias: Floats) -> Floats:
    """LayerNorm of one element, whose deviation from the mean is d."""
    return d.astype(np.float32) * rsigma * weight + bias


def linear(acc: Floats, scale: Floats, scale_w: Floats, bias: Floats) -> Floats:
    """An output from its integer sum, as float32, and the scales of activation and weight."""
    return acc * (scale * scale_w) + bias


def root(d: int | Ints) -> Floats:
    """(head size)^-0.5."""
    width: Floats = np.sqrt(np.asarray(d).astype(np.float32))
    return np.float32(1) / width


def score(acc: Floats, scale_q: Floats, scale_k: Floats, root: Floats) -> Floats:
    """How much a query looks at a key, before the softmax."""
    return acc * (scale_q * scale_k * root)


def count(e: Floats) -> Ints:
    """What e adds to the softmax's normaliser, in units of 2^-20."""
    return rint(e * np.float32(2**20))


def inverse_share(top: Floats) -> Floats:
    """What attention weights are multiplied with when they are quantised; top is the largest of them, possibly 0."""
    divisor: Floats = np.where(top == 0, np.float32(1), top)
    return np.where(top == 0, np.float32(0), UNSIGNED / divisor)


def attended(top: Floats, z: Ints) -> Floats:
    """The factor of a head's output; z is the sum of :func:`count`."""
    return (top / UNSIGNED) / (z.astype(np.float32) * np.float32(2.0**-20))


def relu(x: Floats) -> Floats:
    """max(x, 0), without a -0."""
    return np.where(x > 0, x, np.float32(0))


@np.errstate(over="ignore")  # the cube of a huge x is infinite, and its exp 0, as it should be
def gelu(x: Floats) -> Floats:
    """The tanh form (Hendrycks and Gimpel 2016), as x / (1 + exp(-z)), z = 2·sqrt(2/pi)·(x + 0.044715·x³)."""
    z = (x * x * np.float32(float.fromhex("0x1.6e4e26p-5")) * x + x) * np.float32(float.fromhex("0x1.988454p+0"))
    e = exp(-np.abs(z))
    numerator: Floats = np.where(z < 0, x * e, x)
    return numerator / (np.float32(1) + e)
