"""Holes filled smoothly, by the harmonic surface of their border. NumPy only.

With u known outside the holes and N(p) the four neighbours of a pixel p, itself where they lie beyond the picture,

    u(p) = mean of u over N(p)    for each pixel p of a hole

carries the border's values on. *Source*: T. F. Chan and J. Shen, "Mathematical Models for Local Nontexture
Inpaintings", SIAM J. Appl. Math. 62(3), 2002, of which this is the harmonic form. *Provenance*: written from the
equation, which is solved from coarse to fine (cascadic multigrid) by over-relaxed red-black sweeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]
    Mask = NDArray[np.bool_]

__all__ = ["eroded", "grown", "harmonic"]

SWEEPS, RELAXATION = 16, 1.5  # of each level


def grown(mask: Mask, radius: int) -> Mask:
    """A mask with all that lies within a square around its pixels.

    Args:
        mask: (H, W).
        radius: half the square's side, less half a pixel.

    Returns:
        (H, W).
    """
    for axis in (0, 1):
        padded = np.pad(mask, [(radius, radius) if k == axis else (0, 0) for k in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis)
        mask = np.asarray(windows.any(-1))
    return mask


def eroded(mask: Mask, radius: int) -> Mask:
    """Pixels of a mask around which a whole square belongs to it; beyond the picture counts as belonging.

    Args:
        mask: (H, W).
        radius: half the square's side, less half a pixel.

    Returns:
        (H, W).
    """
    return ~grown(~mask, radius)


def _neighbours(places: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.intp]:
    """Flat places of the four neighbours, (4, n); a pixel is its own neighbour beyond the picture."""
    y, x = np.divmod(places, shape[1])
    up, down = np.maximum(y - 1, 0), np.minimum(y + 1, shape[0] - 1)
    left, right = np.maximum(x - 1, 0), np.minimum(x + 1, shape[1] - 1)
    return np.stack([up * shape[1] + x, down * shape[1] + x, y * shape[1] + left, y * shape[1] + right])


def _halved(x: Pixels, holes: Mask) -> tuple[Pixels, Mask]:
    """Means of what is known of 2×2 pixels, and where nothing is."""
    pads = [(0, x.shape[0] % 2), (0, x.shape[1] % 2)]
    weight = np.pad((~holes).astype(np.float32), pads)  # nothing is known beyond the picture
    values = np.pad(x, [*pads, (0, 0)]) * weight[..., None]
    rows, columns = weight.shape[0] // 2, weight.shape[1] // 2
    count = weight.reshape(rows, 2, columns, 2).sum((1, 3))
    total = values.reshape(rows, 2, columns, 2, -1).sum((1, 3))
    return total / np.maximum(count, 1)[..., None], count == 0


def harmonic(x: Pixels, holes: Mask) -> Pixels:
    """Holes filled by the harmonic surface of their border.

    Args:
        x: (H, W, C), floats; what it holds inside the holes takes no part.
        holes: (H, W), not everywhere.

    Returns:
        A copy with the holes filled, values within those of the border.
    """
    out = np.where(holes[..., None], np.float32(0), x)
    if not holes.any():
        return out
    shape = holes.shape
    small, unknown = _halved(out, holes)
    if unknown.any():
        small = harmonic(small, unknown)
    places = np.flatnonzero(holes)
    y, of_row = np.divmod(places, shape[1])
    flat = out.reshape(-1, x.shape[2])
    flat[places] = small[y // 2, of_row // 2]
    for _ in range(SWEEPS):
        for colour in (0, 1):
            some = places[(y + of_row) % 2 == colour]
            flat[some] += RELAXATION * (flat[_neighbours(some, shape)].mean(0) - flat[some])
    return out
