"""Long convolution with butterfly matrices: the Fourier transform as two or three matrix products.

*Source*: D. Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", ICML 2023,
arXiv:2302.06646, section 3.2, after the Monarch matrices of arXiv:2204.00595.
*Differs from the paper*: the factors may have any sizes whose product is large enough, not only powers of two; the
first product skips the rows of padding and the last one the rows that are discarded; real arithmetic.
*Provenance*: written from the paper.

With n = n₁·n₂, a position s = s₁·n₂ + s₂, a frequency f = f₁ + n₁·f₂ and w = exp(-2πi/n):

    X[f₁, f₂] = Σ_{s₂} w^{n₁·s₂·f₂} · ( w^{s₂·f₁} · Σ_{s₁} w^{n₂·s₁·f₁} x[s₁, s₂] )

a product with an n₁×n₁ matrix, elementwise twiddle factors, a product with an n₂×n₂ matrix. Order 3 factors the second
matrix in the same way. The frequencies come out permuted, which does not matter for a convolution: those of the kernel
are permuted alike, and the inverse performs the same steps backwards.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from foveal.ops.long_conv.eager import both_sides, least_length

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Pair = tuple[Tensor, Tensor]
    Matrix = Callable[[int], Pair]

__all__ = ["dft", "idft", "long_conv_butterfly", "roots", "sizes", "traffic"]


def sizes(n: int, order: int) -> tuple[int, ...]:
    """Factor sizes for a length, as equal as possible.

    Args:
        n: length, at least 1.
        order: number of factors.

    Returns:
        `order` integers whose product is at least n.
    """
    found = []
    for left in range(order, 0, -1):
        found.append(max(1, math.ceil(round(n ** (1 / left), 9))))
        n = -(-n // found[-1])
    return tuple(found)


@lru_cache(maxsize=64)
def _table(n: int, rows: int, columns: int) -> NDArray[np.float64]:
    """Cosine and sine of -2π·i·j/n, (2, rows, columns)."""
    angle = (-2 * np.pi / n) * (np.outer(np.arange(rows), np.arange(columns)) % n)
    return np.stack([np.cos(angle), np.sin(angle)])


def roots(n: int, rows: int, columns: int, like: Tensor) -> Pair:
    """Powers of the n-th root of unity: exp(-2πi·i·j/n).

    Args:
        n: order of the root.
        rows: number of values of i, from 0.
        columns: number of values of j, from 0.
        like: tensor whose dtype and device to use.

    Returns:
        Real and imaginary part, (rows, columns).
    """
    table = torch.from_numpy(_table(n, rows, columns)).to(like)
    return table[0], table[1]


def _times(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def dft(x: Tensor, parts: Sequence[int], matrix: Matrix | None = None) -> Pair:
    """Fourier transform of real sequences, with the frequencies in the order that the products produce.

    Args:
        x: sequences, (…, L), L at most the product of `parts`; implicitly zero-padded.
        parts: n₁, n₂, …
        matrix: function of n that returns the real and imaginary part of an n×n matrix to use instead of the Fourier
            matrix, for learned butterflies.

    Returns:
        Real and imaginary part, (…, n₁·n₂·…).
    """
    rest = math.prod(parts[1:])
    rows = -(-x.shape[-1] // rest)
    # (…, rows, rest)
    x = F.pad(x, (0, rows * rest - x.shape[-1])).unflatten(-1, (rows, rest))
    cos, sin = roots(parts[0], parts[0], rows, x) if matrix is None else (m[:, :rows] for m in matrix(parts[0]))
    y = _times((cos @ x, sin @ x), roots(parts[0] * rest, parts[0], rest, x))
    real, imaginary = _rows(y, parts[1:], matrix)
    return real.flatten(-2), imaginary.flatten(-2)


def _rows(y: Pair, parts: Sequence[int], matrix: Matrix | None = None) -> Pair:
    """Transform of each row, (…, n) complex."""
    like = y[0]
    if not parts:
        return y
    cos, sin = roots(parts[0], parts[0], parts[0], like) if matrix is None else matrix(parts[0])
    if len(parts) == 1:
        # The Fourier matrix is symmetric and may multiply from the right; a learned one is used transposed.
        return y[0] @ cos - y[1] @ sin, y[0] @ sin + y[1] @ cos
    rest = math.prod(parts[1:])
    real, imaginary = (part.unflatten(-1, (parts[0], rest)) for part in y)
    y = _times(
        (cos @ real - sin @ imaginary, cos @ imaginary + sin @ real), roots(parts[0] * rest, parts[0], rest, like)
    )
    real, imaginary = _rows(y, parts[1:], matrix)
    return real.flatten(-2), imaginary.flatten(-2)


def _conjugate(pair: Pair) -> Pair:
    return pair[0], -pair[1]


def _rows_back(y: Pair, parts: Sequence[int]) -> Pair:
    """Inverse of `_rows`, without the division by n."""
    like = y[0]
    if not parts:
        return y
    cos, sin = _conjugate(roots(parts[0], parts[0], parts[0], like))
    if len(parts) == 1:
        return y[0] @ cos - y[1] @ sin, y[0] @ sin + y[1] @ cos
    rest = math.prod(parts[1:])
    y = _rows_back((y[0].unflatten(-1, (parts[0], rest)), y[1].unflatten(-1, (parts[0], rest))), parts[1:])
    real, imaginary = _times(y, _conjugate(roots(parts[0] * rest, parts[0], rest, like)))
    return (cos @ real - sin @ imaginary).flatten(-2), (cos @ imaginary + sin @ real).flatten(-2)


def idft(y: Pair, parts: Sequence[int], length: int) -> Tensor:
    """Inverse transform to real sequences, truncated.

    Args:
        y: real and imaginary part as returned by `dft`, (…, n₁·n₂·…).
        parts: n₁, n₂, …
        length: L, number of leading positions to return.

    Returns:
        (…, L).
    """
    like, rest = y[0], math.prod(parts[1:])
    rows = -(-length // rest)
    y = _rows_back((y[0].unflatten(-1, (parts[0], rest)), y[1].unflatten(-1, (parts[0], rest))), parts[1:])
    real, imaginary = _times(y, _conjugate(roots(parts[0] * rest, parts[0], rest, like)))
    cos, sin = _conjugate(roots(parts[0], rows, parts[0], like))
    out = (cos @ real - sin @ imaginary) / (parts[0] * rest)
    return out.flatten(-2)[..., :length]


def long_conv_butterfly(
    u: Tensor,
    kernel: Tensor,
    D: Tensor | None,
    reverse: Tensor | None,
    *,
    order: int = 2,
    matrix: Matrix | None = None,
) -> Tensor:
    """`long_conv_reference` with matrix products.

    Args:
        u: input, (B, C, L).
        kernel: causal kernel, (H, C, K), K at most L.
        D: skip weights, (H, C).
        reverse: anticausal kernel, (H, C, K'), K' at most L.
        order: number of products per transform.
        matrix: see `dft`; replaces the Fourier matrices of both forward transforms, not of the inverse.

    Returns:
        Output, (B, H, C, L), in the dtype of `u`.
    """
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    length = u.shape[2]
    x = u.to(wide)
    parts = sizes(least_length(u, kernel, reverse), order)
    both = both_sides(kernel.to(wide), None if reverse is None else reverse.to(wide), math.prod(parts))
    real, imaginary = dft(x[:, None], parts, matrix)
    # (B, H, C, L)
    y = idft(_times((real, imaginary), dft(both, parts, matrix)), parts, length)
    if D is not None:
        y = y + D[..., None].to(wide) * x[:, None]
    return y.to(u.dtype)


def traffic(length: int, *, butterfly: bool, fast: int = 192 * 1024) -> int:
    """Model of the slow-memory traffic of the convolution of one channel in float32.

    A transform of n numbers that do not fit into the fast memory needs log n / log M passes over them, where M numbers
    fit (Aggarwal and Vitter, 1988). With torch.fft the kernel, the input and their product take one transform each; the
    product of the frequencies, and the skip with the truncation, take one more pass each. The paper's fused butterfly
    reads the input and the kernel's frequencies and writes the output; a sequence that does not fit takes two more
    passes, because the first and the last product run separately. Half of the frequencies of a real sequence are kept,
    n + 2 numbers.

    Args:
        length: L, of input and kernel.
        butterfly: whether to model the fused butterfly rather than torch.fft.
        fast: bytes of fast memory: 192 KiB for a multiprocessor of an A100, about 1 MiB for a CPU's L2 cache.

    Returns:
        Bytes read and written.
    """
    n, held = 2 * length, fast // 4
    spectrum = n + 2
    if butterfly:
        more = 0 if spectrum <= held else 2
        return 4 * (2 * length + spectrum + more * 2 * spectrum)
    passes = math.ceil(math.log(n) / math.log(held))
    between = (passes - 1) * 2 * spectrum
    transforms = 2 * (length + spectrum + between) + (spectrum + between + n)
    return 4 * (transforms + 3 * spectrum + 3 * length)
