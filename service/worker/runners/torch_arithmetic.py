"""Every function of one element on tensors, on any device: what `kernels/arithmetic.h` says in C, under the same names.

What keeps an element exact, on CUDA too (each is a trap that was found):

* a divisor is a tensor on the device: torch divides by a Python number as ``a * (1 / b)`` on CUDA, and ``number / tensor`` is
  ``reciprocal * number`` everywhere;
* no addcmul, addcdiv, lerp, ``alpha=``: kernels that may contract to fma. No exp, log, pow, ldexp, rsqrt, and no sqrt of float32. No
  torch.compile, whose Triton kernels contract by default;
* float32 products of whole numbers have at most `CUT` terms of 255 · 127, so that every partial sum stays below 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.exact import arithmetic as ar
from model.exact.network import CUT
from model.sampling import ONE

F32, F64, I32, I64 = torch.float32, torch.float64, torch.int32, torch.int64
TINY, UNITS, MOST = float(ar.TINY), float(ar.UNITS), 2.0**26
SIGNED, UNSIGNED, WIDE = float(ar.SIGNED), float(ar.UNSIGNED), float(ar.WIDE)
EPS = float(ar.EPS)


def like(value: float, x: Tensor) -> Tensor:
    """A number as a tensor of x's type on x's device, so that a division by it is one."""
    return torch.full((), value, dtype=x.dtype, device=x.device)


def sqrt(x: Tensor) -> Tensor:
    """float32 square roots, correctly rounded, which torch's own on a CPU are not: float64 has more than twice the bits that decide."""
    return x.to(F64).sqrt().to(F32)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Whole numbers in float32, (…, N, K) and (…, M, K) → their exact products (…, N, M), int32."""
    b = b.transpose(-1, -2)
    parts = [(a[..., i : i + CUT] @ b[..., i : i + CUT, :]).to(I32) for i in range(0, a.shape[-1], CUT)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=I32)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Horner's rule, each product and each sum rounded to the type of x."""
    p = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = p * x + c
    return p


def exp(x: Tensor) -> Tensor:
    """e^x for x <= 0 in float32; 0 below -40."""
    t = x.clamp(min=-40.0) * float.fromhex("0x1.715476p+0")
    n = t.round()
    p = polynomial(ar.EXP, t - n)
    return (p.view(I32) + (n.to(I32) << 23)).view(F32) * (x >= -40.0)


def exp64(x: Tensor) -> Tensor:
    """The same in float64."""
    t = x.clamp(min=-40.0) * float.fromhex("0x1.71547652b82fep+0")
    n = t.round()
    p = polynomial(ar.EXP64, t - n)
    return (p.view(I64) + (n.to(I64) << 52)).view(F64) * (x >= -40.0)


def log64(x: Tensor) -> Tensor:
    """Natural logarithm of a positive, normal float64."""
    m, e = torch.frexp(x)
    low = m < ar.SQRT_HALF
    m, e = torch.where(low, m * 2.0, m), torch.where(low, e - 1, e).to(F64)
    s = torch.div(m - 1.0, m + 1.0)
    return e * float.fromhex("0x1.62e42fefa39efp-1") + polynomial(ar.LOG64, s * s) * s


def inverse(a: Tensor, levels: Tensor) -> Tensor:
    """What a value is multiplied with when it is quantised."""
    return torch.where(a < TINY, 0.0, torch.div(levels, a.clamp(min=TINY)))


def scale(a: Tensor, levels: Tensor) -> Tensor:
    """What a quantised value is multiplied with to get back."""
    return torch.where(a < TINY, 0.0, torch.div(a, levels))


def quantise(y: Tensor, levels: float = SIGNED) -> tuple[Tensor, Tensor]:
    """Vectors (…, K) → whole numbers in float32, and a scale (…, 1) for each vector."""
    a, most = y.abs().amax(-1, keepdim=True), like(levels, y)
    return (y * inverse(a, most)).round(), scale(a, most)


def digits(q: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of 16 bits → (high, low) with q = 256 · high + low."""
    high = ((q + 128.0) * 2.0**-8).floor()
    return high, q - 256.0 * high


def parameter(w: Tensor) -> Tensor:
    """A bias or a parameter of LayerNorm as it is used."""
    return torch.where(w.abs() < TINY, 0.0, w)


def embedding(w: Tensor) -> Tensor:
    """An embedding's weights in units of the residual stream, int32."""
    return (w * UNITS).round().to(I32)


def bound(x: Tensor) -> Tensor:
    """The residual stream's limits."""
    return x.clamp(-ar.BOUND, ar.BOUND)


def residual(x: Tensor, y: Tensor) -> Tensor:
    """x + y, rounded to a unit of the residual stream."""
    return bound(x + (y * UNITS).clamp(-MOST, MOST).round().to(x.dtype))


def mean(s: Tensor, c: Tensor) -> Tensor:
    """The mean of c integers with the sum s (int64), rounded."""
    return torch.div(s.to(F32), c.to(F32)).round().to(I64)


def rsigma(v: Tensor, c: Tensor) -> Tensor:
    """1 / standard deviation; v (int64) is the sum of c squared deviations."""
    variance = torch.div(v.to(F32), c.to(F32)) + EPS
    return torch.div(like(1.0, variance), sqrt(variance))


def norm(d: Tensor, rsigma: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of one element, whose deviation from the mean is d."""
    return d.to(F32) * rsigma * weight + bias


def linear(acc: Tensor, scale: Tensor, scale_w: Tensor, bias: Tensor) -> Tensor:
    """An output from its integer sum and the scales of activation and weight."""
    return acc.to(F32) * (scale * scale_w) + bias


def root(d: Tensor) -> Tensor:
    """(head size)^-0.5."""
    width = sqrt(d.to(F32))
    return torch.div(like(1.0, width), width)


def score(acc: Tensor, scale_q: Tensor, scale_k: Tensor, root: Tensor) -> Tensor:
    """How much a query looks at a key, before the softmax."""
    return acc.to(F32) * (scale_q * scale_k * root)


def count(e: Tensor) -> Tensor:
    """What e adds to the softmax's normaliser, int32 in units of 2^-20."""
    return (e * 2.0**20).round().to(I32)


def inverse_share(top: Tensor) -> Tensor:
    """What attention weights are multiplied with when they are quantised; top is the largest of them, possibly 0."""
    divisor = torch.where(top == 0, 1.0, top)
    return torch.where(top == 0, 0.0, torch.div(like(UNSIGNED, top), divisor))


def attended(top: Tensor, z: Tensor) -> Tensor:
    """The factor of a head's output; z (int64) is the sum of :func:`count`."""
    return torch.div(torch.div(top, like(UNSIGNED, top)), z.to(F32) * 2.0**-20)


def gelu(x: Tensor) -> Tensor:
    """The tanh form, as x / (1 + exp(-z))."""
    z = (x * x * float.fromhex("0x1.6e4e26p-5") * x + x) * float.fromhex("0x1.988454p+0")
    e = exp(-z.abs())
    return torch.div(torch.where(z < 0, x * e, x), e + 1.0)


def adjusted(
    logit: Tensor, bias: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor, in_prompt: Tensor, count: Tensor
) -> Tensor:
    """A logit after bias and penalties, float64; ``count`` is how often the token was generated."""
    x = logit.to(F64) + bias
    x = torch.where(in_prompt | (count > 0), torch.where(x > 0, torch.div(x, repetition), x * repetition), x)
    x = x - frequency * count.to(F64)
    return x - torch.where(count > 0, presence, 0.0)


def weight(x: Tensor, most: Tensor, temperature: Tensor) -> Tensor:
    """Probability in units of 2^-40 of the largest, int64."""
    return (exp64(torch.div(x - most, temperature)) * float(ONE)).round().to(I64)


def least(min_p: Tensor) -> Tensor:
    """The least weight that min-p keeps."""
    return (min_p * float(ONE)).round().to(I64)


def target(fraction: Tensor, total: Tensor) -> Tensor:
    """floor(fraction · total / 2^53) for fraction <= 2^53 and total < 2^63, in int64: a product of 128 bits by halves of 32."""
    half = 2**32 - 1
    al, ah, bl, bh = fraction & half, fraction >> 32, total & half, total >> 32
    middle = ah * bl + ((al * bl >> 32) & half)
    high = ah * bh + (middle >> 32) + (al * bh + (middle & half) >> 32)
    return (high << 11) | (fraction * total >> 53 & 2**11 - 1)


def nucleus(top_p: Tensor, total: Tensor) -> Tensor:
    """Top-p keeps a token if those before it weigh less than this."""
    return target((top_p * 2.0**53).round().to(I64), total).clamp(min=1)


def log_total(total: Tensor) -> Tensor:
    """The logarithm of a sum of weights at temperature 1, in units of the largest."""
    return log64(total.to(F64) * (1.0 / ONE))
