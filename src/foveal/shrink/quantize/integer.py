"""Non-linear operators of transformers in integer arithmetic: exponential, softmax, GELU, normalisation, square root.

*Source*: S. Kim et al., "I-BERT: Integer-only BERT Quantization", ICML 2021 (arXiv:2101.01321), section 3. A value is
an integer q times a scale S known in advance. Polynomials of degree two replace exponential and error function:

    exp(p) ≈ 0.3585 (p + 1.353)² + 0.344            for p in (−ln 2, 0];  exp(x) = exp(p) >> z with x = p − z ln 2
    erf(x) ≈ sign(x) (−0.2888 (min(|x|, 1.769) − 1.769)² + 1)

*Shapes*: q: integers of any shape, int64; scales are floats, since hardware knows them when the network is compiled.

*Differs from the paper*: `rescale` is a 16-bit multiplication and a shift with rounding; the square root starts from a
power of two, as Crandall and Pomerance's does, and takes as many steps as it needs.

*Provenance*: written from the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dyadic", "exponential", "gelu", "normalized", "rescale", "softmax", "square_root"]

_EXP = (0.3585, 1.353, 0.344)  # a, b, c of a (p + b)² + c
_ERF = (-0.2888, -1.769, 1.0)


def dyadic(ratio: float) -> tuple[int, int]:
    """A ratio as a 16-bit integer and a shift.

    Args:
        ratio: factor, above 0.

    Returns:
        m and n with ratio ≈ m / 2^n and m in [2^15, 2^16).

    Raises:
        ValueError: a ratio that is not positive and finite.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"a ratio of scales must be positive and finite, got {ratio}; calibrate on other data")
    mantissa, exponent = math.frexp(ratio)
    m = round(mantissa * 2**16)
    return (m // 2, 15 - exponent) if m == 2**16 else (m, 16 - exponent)


def rescale(q: Tensor, ratio: float | Tensor, *, bits: int, signed: bool = True) -> Tensor:
    """Change the scale of integers: multiply, shift with rounding, and clamp.

    Args:
        q: integers, (…, C), int64.
        ratio: old scale over new scale, one number or one for each entry of the last axis, (C,).
        bits: bits of the result.
        signed: whether the result is in [−2^(bits−1) + 1, 2^(bits−1) − 1] or in [0, 2^bits − 1].

    Returns:
        Integers, of the same shape.
    """
    pairs = [dyadic(float(r)) for r in torch.as_tensor(ratio, dtype=torch.float64).reshape(-1)]
    m, n = (torch.tensor(x) for x in zip(*pairs, strict=True))
    if len(pairs) == 1:
        m, n = m[0], n[0]
    up, down = (-n).clamp(min=0), n.clamp(min=0, max=62)
    half = torch.where(down > 0, 1 << (down - 1).clamp(min=0), 0)
    q = ((q * m << up) + half) >> down
    most = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return q.clamp(-most if signed else 0, most)


def exponential(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Exponential of values that are not positive (algorithm 2).

    Args:
        q: integers, at most 0.
        scale: their scale, at most ln 2.

    Returns:
        Integers and their scale.

    Raises:
        ValueError: a scale above ln 2.
    """
    if scale > math.log(2):
        raise ValueError(f"the exponential needs a scale of at most ln 2, got {scale:.3g}; use more bits")
    a, b, c = _EXP
    ln2 = int(math.log(2) / scale)
    z = -q // ln2
    p = q + z * ln2
    value = (p + int(b / scale)) ** 2 + int(c / (a * scale**2))
    return value >> z.clamp(max=62), a * scale**2


def softmax(q: Tensor, scale: float, *, bits: int = 8) -> tuple[Tensor, float]:
    """Softmax over the last axis (algorithm 3).

    Args:
        q: logits, (…, N).
        scale: their scale.
        bits: bits of the result, unsigned.

    Returns:
        Probabilities, integers in [0, 2^bits), and their scale, 1 / (2^bits − 1).
    """
    value, _ = exponential(q - q.amax(-1, keepdim=True), scale)
    total = value.sum(-1, keepdim=True)
    most = 2**bits - 1
    return (value * most + total // 2) // total, 1 / most


def gelu(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """GELU (algorithm 1).

    Args:
        q: integers.
        scale: their scale.

    Returns:
        Integers and their scale.
    """
    a, b, c = _ERF
    inner = scale / math.sqrt(2)  # scale of x / √2
    top = int(-b / inner)
    scale_erf = -a * inner**2
    erf = q.sign() * (int(c / scale_erf) - (q.abs().clamp(max=top) - top) ** 2)
    return q * (erf + int(1 / scale_erf)), scale * scale_erf / 2


def square_root(q: Tensor) -> Tensor:
    """Largest integers whose squares do not exceed the given ones (algorithm 4).

    Args:
        q: integers, at least 0, below 2^52.

    Returns:
        ⌊√q⌋.
    """
    bits = int(q.max()).bit_length() if q.numel() else 0
    x = torch.full_like(q, 1 << -(-bits // 2))
    while True:
        y = (x + q // x.clamp(min=1)) >> 1
        if not bool((y < x).any()):
            return x
        x = torch.minimum(x, y)


def normalized(q: Tensor, *, bits: int = 10) -> tuple[Tensor, float]:
    """Subtract the mean and divide by the standard deviation, over the last axis (section 3.6, without the affine map).

    Args:
        q: integers, (…, C), of any scale, which cancels.
        bits: bits after the binary point of the result.

    Returns:
        Integers and their scale, 2^−bits.
    """
    dim = q.shape[-1]
    centred = q - torch.div(q.sum(-1, keepdim=True) + dim // 2, dim, rounding_mode="floor")
    deviation = square_root(centred.square().sum(-1, keepdim=True) // dim).clamp(min=1)
    return torch.div((centred << bits) + deviation // 2, deviation, rounding_mode="floor"), 2.0**-bits
