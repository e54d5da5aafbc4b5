"""Random numbers without a generator: number i of seed s is a hash of (s, i), in Python and on tensors. No torch is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def mix64(x: int) -> int:
    """SplitMix64's finaliser on 64-bit integers (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def u53(seed: int, index: int) -> int:
    """Random number ``index`` of the stream ``seed``: uniform in 0 … 2^53 - 1."""
    return mix64((mix64((seed + GOLDEN) & MASK) + (index + 1) * GOLDEN) & MASK) >> 11


def signed(x: int) -> int:
    """The int64 with the bits of a 64-bit unsigned integer."""
    return x - (1 << 64) if x >> 63 else x


def mix64_tensor(x: Tensor) -> Tensor:
    """:func:`mix64` on int64 tensors, whose products wrap and whose right shift must be masked to be logical."""
    x = (x ^ ((x >> 30) & (MASK >> 30))) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (MASK >> 27))) * signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (MASK >> 31))


def u53_tensor(seed: Tensor, index: Tensor) -> Tensor:
    """:func:`u53` on int64 tensors of one shape."""
    state = mix64_tensor(mix64_tensor(seed + signed(GOLDEN)) + (index + 1) * signed(GOLDEN))
    return (state >> 11) & (MASK >> 11)


def uniform_tensor(seed: Tensor, index: Tensor) -> Tensor:
    """The same as float64 in [0, 1)."""
    return u53_tensor(seed, index).double() * 2.0**-53
