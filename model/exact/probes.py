"""Known answers for every function of one element: 2^18 arguments each, their results hashed and summed (`kernels/probe.h` in numpy).

Quantising to 8 bits hides a wrong last bit for many tokens, so equal logits do not prove a function; these sums do. They are constants of
the arithmetic's version, the same for every checkpoint. An engine runs its own functions over the same arguments before it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import sampling
from model.exact import arithmetic as ar
from model.exact.arithmetic import Doubles, Floats, Ints
from model.uniform import GOLDEN, u53

Bits = NDArray[Any]  # of np.uint64, whose shifts numpy types as something else
Array = NDArray[Any]

COUNT = 1 << 18
BOUND = ar.BOUND


@dataclass(frozen=True, slots=True)
class Probe:
    """One function and its arguments, made of four words of random bits for each."""

    name: str
    arguments: Callable[[Bits, Bits, Bits, Bits], tuple[Array, ...]]
    function: Callable[..., Array]


def mix(x: Bits) -> Bits:
    """`model.uniform.mix64` on arrays."""
    x = (x ^ (x >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27)) * np.uint64(0x94D049BB133111EB)
    mixed: Bits = x ^ (x >> 31)
    return mixed


def arguments(number: int) -> tuple[Array, ...]:
    """The arguments of probe ``number``, each (COUNT,)."""
    base = mix(((np.arange(COUNT, dtype=np.uint64) << 8) + np.uint64(number)) * np.uint64(GOLDEN))
    return PROBES[number].arguments(*(mix(base + np.uint64(part)) for part in (1, 2, 3, 4)))


def fold(results: Array) -> int:
    """(COUNT,) results in the order of their arguments → their sum of hashes, modulo 2^64."""
    whole = {"float32": np.uint32, "float64": np.uint64}.get(results.dtype.name)
    bits = results.astype(np.int64).view(np.uint64) if whole is None else results.view(whole).astype(np.uint64)
    return int(mix(bits + np.arange(COUNT, dtype=np.uint64)).sum())


def reference_sum(number: int) -> int:
    """The sum of probe ``number`` as numpy computes it."""
    return fold(PROBES[number].function(*arguments(number)))


def some(h: Bits, least: int, most: int) -> Floats:
    """float32 of either sign, the exponent from ``least`` to ``most``."""
    exponent = np.uint64(127 + least) + (h >> 32) % np.uint64(most - least + 1)
    return ((h & np.uint64(0x807FFFFF)) | exponent << 23).astype(np.uint32).view(np.float32)


def dsome(h: Bits, least: int, most: int) -> Doubles:
    """float64 of either sign."""
    exponent = np.uint64(1023 + least) + (h >> 40) % np.uint64(most - least + 1)
    return ((h & np.uint64(1 << 63)) | exponent << 52 | mix(h) >> 12).view(np.float64)


def within(h: Bits, most: int) -> Ints:
    """Integers from -most to most."""
    return ((h >> 20) % np.uint64(2 * most + 1)).astype(np.int64) - most


def low(h: Bits) -> Ints:
    """The lower 32 bits as a signed integer."""
    return h.astype(np.uint32).view(np.int32).astype(np.int64)


def levels(h: Bits) -> Floats:
    """One of the three numbers of levels."""
    return np.array([ar.SIGNED, ar.UNSIGNED, ar.WIDE])[(h % 3).astype(np.int64)]


def width(k: Bits) -> Ints:
    """From 1 to 8191."""
    return 1 + (k % 8191).astype(np.int64)


def fraction(h: Bits) -> Doubles:
    """float64 from 0 to below 1."""
    return (h >> 11).astype(np.float64) * 2.0**-53


def wide_sum(h: Bits) -> Floats:
    """256 · high + low of two sums of 32 bits, rounded once."""
    return (256 * low(h) + low(h >> 32)).astype(np.float32)


def scales(g: Bits, k: Bits) -> tuple[Floats, Floats]:
    """Of an activation and of a weight."""
    return np.abs(some(g, -54, 20)), np.abs(some(k, -46, 9))


def element_sum(h: Bits, k: Bits) -> tuple[Ints, Ints]:
    """A sum of the residual stream's elements and their number."""
    c = width(k)
    return (h >> 12).astype(np.int64) % (c * 2 * BOUND + 1) - c * BOUND, c


def penalised(h: Bits, g: Bits, k: Bits, m: Bits) -> tuple[Array, ...]:
    """Logit, bias, three penalties, whether the token is in the prompt, how often it was generated."""
    bias = np.where(g & 1, dsome(g, -10, 6), 0.0)
    count = np.where(k & 2, k >> 2 & 7, 0).astype(np.int64)
    return some(h, -10, 7), bias, 0.5 + fraction(k), dsome(m, -10, 1), dsome(mix(m), -10, 1), (k & 1) == 1, count


def fall(h: Bits, step: float) -> Floats:
    """float32 from -2^25 steps to 0."""
    return -(h >> 39).astype(np.float32) * np.float32(step)


def each(function: Callable[..., int]) -> Callable[..., Array]:
    """A function of Python's integers on arrays."""
    return lambda *arrays: np.array([function(*one) for one in zip(*(a.tolist() for a in arrays), strict=True)], np.uint64).view(np.int64)


def quantised(y: Floats, a: Floats, levels: Floats) -> Ints:
    """One element of a vector whose largest magnitude is a."""
    return ar.rint(y * ar.inverse(a, levels))


PROBES = (
    Probe("exp", lambda h, g, k, m: (fall(h, 1.25 * 2**-20),), ar.exp),
    Probe("exp64", lambda h, g, k, m: (-(h >> 11).astype(np.float64) * (1.3125 * 2.0**-48),), ar.exp64),
    Probe("log64", lambda h, g, k, m: (np.abs(dsome(h, -60, 62)),), ar.log64),
    Probe("inverse", lambda h, g, k, m: (np.abs(some(h, -42, 90)), levels(g)), ar.inverse),
    Probe("scale", lambda h, g, k, m: (np.abs(some(h, -42, 90)), levels(g)), ar.scale),
    Probe(
        "quantise",
        lambda h, g, k, m: (
            (a := np.abs(some(h, -40, 90))) * (within(g, 1 << 23).astype(np.float32) * np.float32(2.0**-23)),
            a,
            levels(k),
        ),
        quantised,
    ),
    Probe("high", lambda h, g, k, m: (within(h, 32639).astype(np.float32),), lambda q: ar.digits(q)[0].astype(np.int64)),
    Probe("low", lambda h, g, k, m: (within(h, 32639).astype(np.float32),), lambda q: ar.digits(q)[1].astype(np.int64)),
    Probe("parameter", lambda h, g, k, m: (some(h, -44, 16),), ar.parameter),
    Probe("embedding", lambda h, g, k, m: (some(h, -20, 15),), ar.embedding),
    Probe("bound", lambda h, g, k, m: (within(h, 1 << 27),), ar.bound),
    Probe("residual", lambda h, g, k, m: (within(h, BOUND), some(g, -16, 30)), ar.residual),
    Probe("mean", lambda h, g, k, m: element_sum(h, k), ar.mean),
    Probe("rsigma", lambda h, g, k, m: ((h >> (1 + g % 60)).astype(np.int64), width(k)), ar.rsigma),
    Probe("norm", lambda h, g, k, m: (within(h, 2 * BOUND), np.abs(some(g, -26, -4)), some(k, -40, 15), some(m, -40, 15)), ar.norm),
    Probe("linear", lambda h, g, k, m: (low(h).astype(np.float32), *scales(g, k), some(m, -40, 15)), ar.linear),
    Probe("linear_wide", lambda h, g, k, m: (wide_sum(h), *scales(g, k), some(m, -40, 15)), ar.linear),
    Probe("root", lambda h, g, k, m: (width(k),), ar.root),
    Probe(
        "score",
        lambda h, g, k, m: (low(h).astype(np.float32), np.abs(some(g, -46, 40)), np.abs(some(k, -46, 40)), ar.root(width(k))),
        ar.score,
    ),
    Probe("count", lambda h, g, k, m: (ar.exp(fall(h, 2.0**-21)),), ar.count),
    Probe("inverse_share", lambda h, g, k, m: (np.where(h & 1, np.abs(some(h, -104, 60)), np.float32(0)),), ar.inverse_share),
    Probe("attended", lambda h, g, k, m: (np.abs(some(h, -104, 60)), (1 << 20) + (g >> (31 + k % 13)).astype(np.int64)), ar.attended),
    Probe("attention", lambda h, g, k, m: (low(h).astype(np.float32), np.abs(some(g, -110, 60))), np.multiply),
    Probe("relu", lambda h, g, k, m: (some(h, -60, 60),), ar.relu),
    Probe("gelu", lambda h, g, k, m: (np.where(g % 8 > 0, some(h, -20, 5), some(h, -60, 54)),), ar.gelu),
    Probe("adjusted", penalised, sampling.adjusted),
    Probe(
        "weight",
        lambda h, g, k, m: (dsome(h, -10, 3) - 16.0, np.zeros(COUNT), 0.01 + (g >> 11).astype(np.float64) * 2.0**-50),
        sampling.weight,
    ),
    Probe("least", lambda h, g, k, m: (fraction(h),), each(sampling.least)),
    Probe("target", lambda h, g, k, m: (h >> 11, g >> (1 + k % 40)), each(sampling.target)),
    Probe("nucleus", lambda h, g, k, m: (fraction(h), g >> (1 + k % 40)), each(sampling.nucleus)),
    Probe("u53", lambda h, g, k, m: (h >> 11, g >> 40), each(u53)),
    Probe("log_total", lambda h, g, k, m: ((1 << 40) + (h >> (1 + g % 23)).astype(np.int64),), sampling.log_total),
    Probe(
        "logprob",
        lambda h, g, k, m: (
            some(h, -10, 7).astype(np.float64),
            np.abs(some(g, 7, 8)).astype(np.float64),
            np.abs(some(k, -10, 4)).astype(np.float64),
        ),
        sampling.logprob,
    ),
)
"""In the order of `ex_probe_result`."""

SUMS = {
    "exp": 0x37489815B7731AE7,
    "exp64": 0x9C1F2CEDAD9C2A48,
    "log64": 0x8C361CF10962BEC1,
    "inverse": 0xB06713893EA26CE2,
    "scale": 0xF3ACD8B7F4C2AC62,
    "quantise": 0xB6AA7D942DE8A4C2,
    "high": 0x96156A16548AFF7A,
    "low": 0xFC736B69B8B8E191,
    "parameter": 0x61CAD5393489A14F,
    "embedding": 0x58100B3219CF690C,
    "bound": 0xEE6377EA7989F70D,
    "residual": 0x9ED9801EA7C96F94,
    "mean": 0xCB843929B5DE9FAE,
    "rsigma": 0x7CCC76793F9939CC,
    "norm": 0x73073B5A2FE568EE,
    "linear": 0x73C0BC0164CD02A8,
    "linear_wide": 0xF107272B3B84FBE1,
    "root": 0x7292DF05FC3EA668,
    "score": 0xA54D221A2450A16F,
    "count": 0xF944ED24B1A836EE,
    "inverse_share": 0xB5CC2F077CE2A355,
    "attended": 0x38CCA19E5ED04B0F,
    "attention": 0xAA56A2C1E8F30CFF,
    "relu": 0x6A39C97F21939C68,
    "gelu": 0x12986C16472D1079,
    "adjusted": 0x574C7722811CED83,
    "weight": 0x0D2981C2585340C4,
    "least": 0x80BE281E6E8FA915,
    "target": 0x399C134B16FA5AB5,
    "nucleus": 0x99CED0084C22EB72,
    "u53": 0x719ABA377AEF2EEA,
    "log_total": 0xB7301B8C7C9C948E,
    "logprob": 0xCE7D18513F1595C5,
}
"""The known answers, by name and in the same order."""
