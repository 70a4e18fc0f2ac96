"""Textures that tile: a border of what follows on each side goes in, and the same border is cut off the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from foveal.runtime.enlarge import Step

__all__ = ["unwrapped", "wrapped"]


def wrapped(pixels: NDArray, border: int) -> NDArray:
    """A texture that tiles, with what follows on each side.

    Args:
        pixels: (H, W, C).
        border: pixels on each side.

    Returns:
        (H + 2·border, W + 2·border, C).
    """
    return np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="wrap")


def unwrapped(
    bands: Iterable[NDArray],
    border: int,
    size: tuple[int, ...],
    scale: int,
    *,
    out: NDArray | None = None,
    step: Step | None = None,
) -> Iterator[NDArray]:
    """Cut the border off a result.

    Args:
        bands: bands of the result, (s·h, s·(W + 2·border), C), from top to bottom.
        border: pixels of the source on each side.
        size: (H, W).
        scale: s.
        out: array for the whole result; by default none.
        step: function called after each band with the part that is done.

    Yields:
        Bands without the border.
    """
    height, width = (scale * side for side in size)
    first = -border * scale
    done = 0
    for band in bands:
        last = first + len(band)
        part = band[max(0, first) - first : max(0, min(height, last) - first)]
        part = part[:, border * scale : border * scale + width]
        first = last
        if not len(part):
            continue
        if out is not None:
            out[done : done + len(part)] = part
        if step is not None:
            step((0, done, width, done + len(part)))
        done += len(part)
        yield part
