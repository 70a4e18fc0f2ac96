"""Overlapping tiles of a global network, blended.

What a global network makes of a tile depends on the whole tile, so two neighbours differ where they meet, however wide
the margin. Each tile here reaches `margin` pixels beyond its core, and two neighbours are averaged over the 2·margin
pixels that both cover, with weights that fall linearly from the one to the other:

    out(p) = Σ_t w_t(p)·y_t(p) / Σ_t w_t(p),   w_t(p) = min(1, (d + 1/2) / (2·margin·s)) along each axis,

where d counts output pixels from the end of what tile t covers; at the edges of the picture the weight stays 1.
Where there is alpha, colour is weighted by it too, so that what hides behind transparent pixels does not leak.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.runtime.tiles import Grid, Piece

__all__ = ["Blend", "ramp", "widened"]


def ramp(first: int, last: int, length: int, margin: int, scale: int) -> NDArray[np.float32]:
    """Weights of a tile along one axis.

    Args:
        first: first pixel of the tile's used core.
        last: pixel after the last one.
        length: side of the picture.
        margin: pixels that the tile reaches beyond its core.
        scale: output side over input side, s.

    Returns:
        One weight in (0, 1] for each output pixel of what the tile covers inside the picture.
    """
    size = scale * (min(length, last + margin) - max(0, first - margin))
    rising = (np.arange(size, dtype=np.float32) + 0.5) / (2 * margin * scale)
    weights = np.ones(size, np.float32)
    if first > 0:
        np.minimum(weights, rising, out=weights)
    if last < length:
        np.minimum(weights, rising[::-1], out=weights)
    return weights


def widened(piece: Piece, grid: Grid) -> Piece:
    """A tile with its used part stretched over the margin, as far as the picture goes.

    Args:
        piece: the tile.
        grid: tiles of the picture.

    Returns:
        The same tile with more of it used.
    """
    rows, columns = (
        (max(0, start + used[0] - grid.margin) - start, min(length, start + used[1] + grid.margin) - start)
        for start, used, length in (
            (piece.top, piece.rows, grid.height),
            (piece.left, piece.columns, grid.width),
        )
    )
    return replace(piece, rows=rows, columns=columns)


class Blend:
    """The weighted sum of tiles, kept for the rows that are not final yet.

    Args:
        width: width of the result.
        channels: channels of the picture.
        alpha: the last channel is alpha.
    """

    def __init__(self, width: int, channels: int, *, alpha: bool) -> None:
        self._sums = np.zeros((0, width, channels), np.float32)
        self._weights = np.zeros((0, width, 1), np.float32)
        self._alpha = alpha
        self.top = 0  # row of the result that the sums begin with

    def extended(self, bottom: int) -> Blend:
        """A copy with room for more rows: what is added to it is lost with it, if memory runs out on the way.

        Args:
            bottom: row of the result after the last one wanted.

        Returns:
            The copy.
        """
        more = max(0, bottom - self.top - len(self._sums))
        made = Blend(self._sums.shape[1], self._sums.shape[2], alpha=self._alpha)
        made._sums, made._weights = (np.pad(x, ((0, more), (0, 0), (0, 0))) for x in (self._sums, self._weights))
        made.top = self.top
        return made

    def add(self, tile: NDArray[np.float32], top: int, left: int, weights: tuple[NDArray, NDArray]) -> None:
        """Add a tile.

        Args:
            tile: pixels in [0, 1], (h, w, C); changed.
            top: row of the result that it begins with.
            left: column of the result that it begins with.
            weights: weights of its rows, (h,), and of its columns, (w,).
        """
        if self._alpha:
            tile[..., :-1] *= tile[..., -1:]
        weight = weights[0][:, None, None] * weights[1][None, :, None]
        tile *= weight
        place = (slice(top - self.top, top - self.top + len(tile)), slice(left, left + tile.shape[1]))
        self._sums[place] += tile
        self._weights[place] += weight

    def take(self, bottom: int, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take out the rows that are final.

        Args:
            bottom: row of the result after the last one that no further tile reaches.
            hidden: colours to put behind pixels without alpha, (n, W, C - 1); only looked at where there is alpha.

        Returns:
            Pixels in [0, 1], (n, W, C).
        """
        count = bottom - self.top
        sums, weights = self._sums[:count], self._weights[:count]
        self._sums, self._weights, self.top = self._sums[count:], self._weights[count:], bottom
        if not self._alpha:
            return sums / weights
        alpha = sums[..., -1:]
        visible = alpha > 0
        colour = np.divide(sums[..., :-1], alpha, out=hidden.copy(), where=visible)
        return np.concatenate([colour, alpha / weights], axis=2)
