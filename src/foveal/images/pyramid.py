"""Gaussian and Laplacian pyramids of float arrays: details of ever coarser levels, which add up to the picture again.

*Source*: P. J. Burt and E. H. Adelson, "The Laplacian Pyramid as a Compact Image Code", IEEE Transactions on
Communications 31(4), 1983, with the kernel (1, 4, 6, 4, 1) / 16 (a = 0.375):

    Gₗ₊₁ = reduce(Gₗ);   Lₗ = Gₗ - expand(Gₗ₊₁);   the last level is G itself

A level has half the side of the one before, rounded up. Edge samples are repeated.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["collapse", "depth", "expand", "gaussian", "laplacian", "reduce"]

COARSEST = 8  # side below which a picture is not halved again, in pixels


def depth(height: int, width: int) -> int:
    """Number of levels down to about 8 pixels.

    Args:
        height: rows of the picture.
        width: its columns.

    Returns:
        At least 1.
    """
    levels, side = 1, min(height, width)
    while side >= 2 * COARSEST:
        levels, side = levels + 1, -(-side // 2)
    return levels


def _halved(x: NDArray) -> NDArray:
    """Every second row of the filtered array, (n, …) to (⌈n / 2⌉, …)."""
    out = -(-len(x) // 2)
    padded = np.pad(x, [(2, 3)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    a, b, c, d, e = (padded[k : k + 2 * out : 2] for k in range(5))
    result: NDArray = (a + e + 4 * (b + d) + 6 * c) / 16
    return result


def _doubled(x: NDArray, size: int) -> NDArray:
    """Rows between those of an array, (n, …) to (size, …), size 2n or 2n - 1."""
    padded = np.pad(x, [(1, 1)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    before, here, after = padded[:-2], padded[1:-1], padded[2:]
    out = np.empty((2 * len(x), *x.shape[1:]), x.dtype)
    out[::2] = (before + 6 * here + after) / 8
    out[1::2] = (here + after) / 2
    return out[:size]


def reduce(x: NDArray) -> NDArray:
    """The next coarser level.

    Args:
        x: floats, (H, W) or (H, W, C).

    Returns:
        (⌈H / 2⌉, ⌈W / 2⌉) or (⌈H / 2⌉, ⌈W / 2⌉, C), in the dtype of `x`.
    """
    return _halved(_halved(x).swapaxes(0, 1)).swapaxes(0, 1)


def expand(x: NDArray, height: int, width: int) -> NDArray:
    """A level interpolated to the size of the next finer one.

    Args:
        x: floats, (h, w) or (h, w, C).
        height: rows of the finer level, 2h or 2h - 1.
        width: its columns, 2w or 2w - 1.

    Returns:
        (height, width) or (height, width, C).
    """
    return _doubled(_doubled(x, height).swapaxes(0, 1), width).swapaxes(0, 1)


def gaussian(x: NDArray, levels: int) -> list[NDArray]:
    """Gaussian pyramid.

    Args:
        x: floats, (H, W) or (H, W, C).
        levels: number of levels, at least 1.

    Returns:
        The levels, finest first; the first is `x`.
    """
    made = [x]
    for _ in range(levels - 1):
        made.append(reduce(made[-1]))
    return made


def laplacian(x: NDArray, levels: int) -> list[NDArray]:
    """Laplacian pyramid.

    Args:
        x: floats, (H, W) or (H, W, C).
        levels: number of levels, at least 1.

    Returns:
        The details, finest first, and as the last level the coarsest means.
    """
    means = gaussian(x, levels)
    details = [fine - expand(coarse, *fine.shape[:2]) for fine, coarse in itertools.pairwise(means)]
    return [*details, means[-1]]


def collapse(levels: Sequence[NDArray]) -> NDArray:
    """The picture of a Laplacian pyramid, inverse of `laplacian`.

    Args:
        levels: details, finest first, and the coarsest means.

    Returns:
        The picture, in the shape of the first level.
    """
    out = levels[-1]
    for detail in reversed(levels[:-1]):
        out = detail + expand(out, *detail.shape[:2])
    return out
