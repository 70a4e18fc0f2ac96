"""A picture cut into tiles, so that any size fits in memory, without a seam.

Every tile is `tile` pixels of the picture (its core) with `margin` pixels of surroundings on each side, where `margin`
is the radius of the network's receptive field; beyond its edge the picture is mirrored. What the network makes
of the core therefore depends on exactly the pixels it would see in the whole picture: tiled equals untiled. A network
that trims its borders itself returns just the core; of any other the margin is cut away here. A network that wants a
larger input than that is given more of the picture, or of its mirror image, below and to the right. Tiles of a global
network see too little whatever the margin; `blend.py` hides their borders.

All tiles of a picture have one size, because engines prepare themselves anew for each size and because equal tiles can
be run in batches: the last row and column are shifted inward and overlap the ones before. The picture is processed in
bands, one row of tiles each, from top to bottom, so that finished rows can leave memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from foveal.runtime.card import Card

__all__ = ["SMALLEST_TILE", "Grid", "Piece", "cut", "grid_of", "make_grid", "round_up"]

SMALLEST_TILE = 16
# Batches up to this many input pixels: enough to drown the cost of a call, little enough to stay small in memory.
_BATCH_PIXELS = 320 * 320
# In automatic mode no band of the output takes more than this, however wide the picture.
_BAND_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """One tile: where it lies and which part of it is used.

    Args:
        top: row of the core's first pixel in the picture.
        left: column of the core's first pixel in the picture.
        rows: first and past-the-last row of the core that is used, counted within the core.
        columns: the same for columns.
    """

    top: int
    left: int
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """A picture's tiles.

    Args:
        height: height of the picture, in pixels.
        width: width of the picture.
        tile: (rows, columns) of every core.
        side: (rows, columns) of what the network is given for every tile, margins included.
        margin: pixels of surroundings above and left of the core.
        trims: whether the network takes the margin off itself.
        multiple: tiles start at multiples of this.
        batch: number of tiles run together.
    """

    height: int
    width: int
    tile: tuple[int, int]
    side: tuple[int, int]
    margin: int
    trims: bool
    multiple: int
    batch: int

    @property
    def rows(self) -> int:
        """Bands."""
        return ceil(self.height / self.tile[0])

    @property
    def columns(self) -> int:
        """Tiles in a band."""
        return ceil(self.width / self.tile[1])

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.rows * self.columns

    @property
    def pixels(self) -> int:
        """What the network is given in all, margins included, in input pixels."""
        return self.tiles * self.side[0] * self.side[1]

    def band(self, top: int) -> tuple[int, list[Piece]]:
        """The row of tiles that makes the rows from `top` on.

        Args:
            top: first row that is not done yet, a multiple of `multiple`.

        Returns:
            The first row after the band, and its tiles from left to right.
        """
        tops = _start(top, self.tile[0], self.height, self.multiple)
        bottom = min(self.height, tops + self.tile[0])
        pieces = []
        for column in range(self.columns):
            first = column * self.tile[1]
            left = _start(first, self.tile[1], self.width, self.multiple)
            last = min(self.width, left + self.tile[1])
            pieces.append(Piece(tops, left, (top - tops, bottom - tops), (first - left, last - left)))
        return bottom, pieces

    def batches(self, pieces: list[Piece]) -> Iterator[list[Piece]]:
        """Tiles in groups that run together.

        Args:
            pieces: tiles of one band.

        Yields:
            Up to `batch` of them.
        """
        for first in range(0, len(pieces), self.batch):
            yield pieces[first : first + self.batch]


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below a value.

    Args:
        value: a length.
        multiple: at least 1.

    Returns:
        The multiple.
    """
    return -(-value // multiple) * multiple


def _start(first: int, tile: int, length: int, multiple: int) -> int:
    """Where a tile that should start at `first` starts, so that it ends with the picture (rounded up to `multiple`)."""
    return max(0, min(first, round_up(length, multiple) - tile))


def _core(length: int, target: int, slack: bool, multiple: int) -> int:
    """Side of equal tiles near `target`: at most that, or within a half of it with `slack`."""
    count = max(1, ceil(length / target - 0.5)) if slack else ceil(length / target)
    return round_up(ceil(length / count), multiple)


def make_grid(height: int, width: int, tile: int, card: Card, *, automatic: bool = False, pixel_bytes: int = 3) -> Grid:
    """Cut a picture into tiles.

    Args:
        height: height of the picture, in pixels.
        width: width of the picture.
        tile: side of a tile's core in input pixels.
        card: card of the bundle to run.
        automatic: take `tile` as a wish: tiles may be up to half as large again if that saves one, and are made flatter
            where a band of the output would take too much memory.
        pixel_bytes: bytes of an output pixel.

    Returns:
        The grid.

    Raises:
        ValueError: a picture or a tile without pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture must have at least one pixel, got {width}×{height}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    rows, columns = tile, tile
    if automatic:
        row_bytes = width * card.scale**2 * pixel_bytes
        rows = max(SMALLEST_TILE, min(tile, _BAND_BYTES // row_bytes))
    core = (_core(height, rows, automatic, card.multiple), _core(width, columns, automatic, card.multiple))
    return grid_of(height, width, core, card)


def grid_of(height: int, width: int, core: tuple[int, int], card: Card) -> Grid:
    """A grid of tiles of a given size.

    Args:
        height: height of the picture, in pixels.
        width: width of the picture.
        core: (rows, columns) of every core, multiples of the card's `multiple`.
        card: card of the bundle to run.

    Returns:
        The grid.
    """
    # A network that trims takes exactly its margin; another is given whole multiples so that its phases stay in place.
    margin = card.margin if card.trims else round_up(card.margin, card.multiple)
    least = round_up(card.minimum, card.multiple)
    side = (
        max(least, round_up(core[0] + 2 * margin, card.multiple)),
        max(least, round_up(core[1] + 2 * margin, card.multiple)),
    )
    batch = max(1, _BATCH_PIXELS // (side[0] * side[1]))
    return Grid(height, width, core, side, margin, card.trims, card.multiple, batch)


def _mirrored(first: int, last: int, length: int) -> NDArray[np.intp]:
    """Positions `first` to `last` - 1 folded into `length` pixels: -1 is 0, -2 is 1, `length` is the last one."""
    place = np.arange(first, last) % (2 * length)
    return np.minimum(place, 2 * length - 1 - place)


def cut(image: NDArray, top: int, left: int, into: NDArray, factor: float = 1.0) -> None:
    """Copy a part of a picture, mirrored at its edges where the part reaches beyond them.

    Texture goes on beyond a mirrored edge as it does inside; a repeated edge pixel looks like a stripe, and the network
    sharpens it: on Set14 at ×2 that cost 0.09 dB of the whole picture.

    Args:
        image: picture, (H, W, C).
        top: row of the first pixel wanted, may be negative.
        left: column of the first pixel wanted, may be negative.
        into: array for the part, (h, w, C), or (h, w, 3) of a grey picture (three equal channels); of any dtype and
            strides.
        factor: multiplies the values; 1 copies them.
    """
    bottom, right = top + into.shape[0], left + into.shape[1]
    if top >= 0 and left >= 0 and bottom <= image.shape[0] and right <= image.shape[1]:
        part = image[top:bottom, left:right]
    else:
        rows, columns = _mirrored(top, bottom, image.shape[0]), _mirrored(left, right, image.shape[1])
        y, x = rows.min(), columns.min()
        part = image[y : rows.max() + 1, x : columns.max() + 1].take(rows - y, axis=0).take(columns - x, axis=1)
    if factor == 1:
        into[...] = part
    else:
        np.multiply(part, np.float32(factor), out=into)
