"""Pixel art made larger without a new colour. NumPy only.

*Source*: A. Mazzoleni, Scale2x and Scale3x (https://www.scale2x.it/algorithm, 2001). A pixel E becomes 2×2 or 3×3;
a corner takes the colour of its two neighbours where these are equal and differ from those across:

    B            E0 = D  if D = B, B ≠ H and D ≠ F, else E
    D E F        and so for each corner, turned;
    H            ×3 also sets the middles of the sides, by the corners of the 3×3 neighbourhood; ×4 is ×2 of ×2.

Slanted edges lose half of their steps, edges along the axes stay where they are, and every colour is one of the
source's, transparency included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["PIXEL_ART_REACH", "enlarge_pixel_art"]

PIXEL_ART_REACH = 2  # pixels of the source that ×2 of ×2 looks at
_BAND = 256  # rows of the source that are made at a time


def _codes(pixels: NDArray) -> NDArray:
    """One number for each colour, so that pixels are compared at once, (H, W)."""
    height, width, channels = pixels.shape
    size = channels * pixels.itemsize
    words = np.zeros((height, width, 4 if size <= 4 else 8 * -(-size // 8)), np.uint8)
    words[..., :size] = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, width, size)
    if words.shape[2] <= 8:
        return words.view(np.uint32 if words.shape[2] == 4 else np.uint64)[..., 0]
    pairs = words.view(np.uint64).reshape(-1, words.shape[2] // 8)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(height, width)


def _neighbours(values: NDArray) -> dict[str, NDArray]:
    """Each pixel's neighbours A to I, row by row, the border repeated."""
    height, width = values.shape[:2]
    around = np.pad(values, [(1, 1), (1, 1)] + [(0, 0)] * (values.ndim - 2), mode="edge")
    return {name: around[k // 3 : k // 3 + height, k % 3 : k % 3 + width] for k, name in enumerate("ABCDEFGHI")}


def _scaled(pixels: NDArray, scale: int) -> NDArray:
    """(H, W, C) to (s·H, s·W, C), s 2 or 3."""
    code, colour = _neighbours(_codes(pixels)), _neighbours(pixels)
    a, b, c, d, e, f, g, h, i = (code[name] for name in "ABCDEFGHI")
    height, width, channels = pixels.shape
    out = np.empty((height, scale, width, scale, channels), pixels.dtype)
    out[:] = pixels[:, None, :, None]
    differ = (b != h) & (d != f)
    corners = [(d == b, 0, 0, "D"), (b == f, 0, -1, "F"), (d == h, -1, 0, "D"), (h == f, -1, -1, "F")]
    for equal, row, column, source in corners:
        where = differ & equal
        out[:, row, :, column][where] = colour[source][where]
    if scale == 3:
        top = ((d == b) & (e != c)) | ((b == f) & (e != a))
        left = ((d == b) & (e != g)) | ((d == h) & (e != a))
        right = ((b == f) & (e != i)) | ((h == f) & (e != c))
        bottom = ((d == h) & (e != i)) | ((h == f) & (e != g))
        for some, row, column, source in ((top, 0, 1, "B"), (left, 1, 0, "D"), (right, 1, 2, "F"), (bottom, 2, 1, "H")):
            where = differ & some
            out[:, row, :, column][where] = colour[source][where]
    return out.reshape(height * scale, width * scale, channels)


def enlarge_pixel_art(pixels: NDArray, scale: int) -> Iterator[NDArray]:
    """Make pixel art larger, band by band.

    Args:
        pixels: (H, W, C) of any dtype.
        scale: 2, 3 or 4.

    Yields:
        Bands of the result, (s·h, s·W, C), from top to bottom.

    Raises:
        ValueError: another scale.
    """
    if scale not in (2, 3, 4):
        raise ValueError(f"pixel art is made 2, 3 or 4 times larger, got a scale of {scale}; take another bundle")
    height = len(pixels)
    for top in range(0, height, _BAND):
        first, last = max(0, top - PIXEL_ART_REACH), min(height, top + _BAND + PIXEL_ART_REACH)
        made = pixels[first:last]
        for factor in (2, 2) if scale == 4 else (scale,):
            made = _scaled(made, factor)
        yield made[(top - first) * scale : (min(height, top + _BAND) - first) * scale]
