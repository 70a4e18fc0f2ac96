"""The Triton kernel of the fused long convolution; `foveal.ops.long_conv.triton` launches it.

Products are float32, computed in three tensor-core passes each, because a single pass would keep only ten bits.
"""

# Triton resolves every annotation of a kernel, and has none for a pointer.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["convolve"]


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def convolve(
    u,
    real,
    imaginary,
    skip,
    out,
    first,
    second,
    twiddle,
    length,
    channels,
    given,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
) -> None:
    """One sequence, channel and head: (n₁, n₂) tiles throughout."""
    batch, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head, channel = row // channels, row % channels
    n: tl.constexpr = FIRST * SECOND
    along, across = tl.arange(0, FIRST), tl.arange(0, SECOND)
    place = along[:, None] * SECOND + across[None, :]
    inside = place < length

    square = along[:, None] * FIRST + along[None, :]
    cos1, sin1 = tl.load(first + square), tl.load(first + FIRST * FIRST + square)
    square = across[:, None] * SECOND + across[None, :]
    cos2, sin2 = tl.load(second + square), tl.load(second + SECOND * SECOND + square)
    turn_real, turn_imaginary = tl.load(twiddle + place), tl.load(twiddle + n + place)

    source = u + ((batch * given + head % given) * channels + channel) * length
    x = tl.load(source + place, mask=inside, other=0.0)
    a, b = _dot(cos1, x), _dot(sin1, x)
    a, b = a * turn_real - b * turn_imaginary, a * turn_imaginary + b * turn_real
    a, b = _dot(a, cos2) - _dot(b, sin2), _dot(a, sin2) + _dot(b, cos2)

    kernel_real, kernel_imaginary = tl.load(real + row * n + place), tl.load(imaginary + row * n + place)
    a, b = a * kernel_real - b * kernel_imaginary, a * kernel_imaginary + b * kernel_real

    # Inverse with the conjugate matrices, which are symmetric.
    a, b = _dot(a, cos2) + _dot(b, sin2), _dot(b, cos2) - _dot(a, sin2)
    a, b = a * turn_real + b * turn_imaginary, b * turn_real - a * turn_imaginary
    y = (_dot(cos1, a) + _dot(sin1, b)) / n
    if skip is not None:
        y += tl.load(skip + row) * x
    tl.store(out + (batch * tl.num_programs(1) + row) * length + place, y, mask=inside)
