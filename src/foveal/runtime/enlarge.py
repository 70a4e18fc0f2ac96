"""A picture through a network, tile by tile: bands of rows come out as they are done.

Tiles of a network with a known reach are put side by side; those of one that sees the whole picture overlap and are
blended in floats (`blend.py`), and so take the float file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from foveal.runtime.blend import Blend, ramp, widened
from foveal.runtime.pixels import Network, colour_tiles, largest_value, store, tile_with_alpha
from foveal.runtime.tiles import SMALLEST_TILE, Grid, Piece

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Progress", "Step", "counter", "enlarge", "rows_of", "run_tiles"]

# Called with megapixels of the result that are done, those in all, and the part just finished as (left, top, right,
# bottom) in pixels of the result.
Progress = Callable[[float, float, tuple[int, int, int, int]], None]
# Called after each batch of tiles with the part of the output that is now done: (left, top, right, bottom) in pixels.
Step = Callable[[tuple[int, int, int, int]], None]


def enlarge(
    image: NDArray,
    network: Network,
    grid_for: Callable[[int], Grid],
    tile: int,
    *,
    alpha: bool,
    out: NDArray | None = None,
    step: Step | None = None,
    smaller: Callable[[int], None] | None = None,
) -> Iterator[NDArray]:
    """Run a picture through a network, band by band from top to bottom.

    Args:
        image: picture, (H, W, C), C from 1 to 4, uint8, uint16 or floating point in [0, 1].
        network: network to run.
        grid_for: function from the side of a tile to the picture's grid.
        tile: side of a tile to begin with; halved whenever memory does not suffice.
        alpha: the last channel is alpha.
        out: array for the result, (s·H, s·W, C) of the dtype of `image`; by default each band is an array of its own.
        step: function called after each batch of tiles.
        smaller: function called with the new side when a tile was halved.

    Yields:
        Bands, (s·n, s·W, C), the parts of `out` if there is one. With overlapping tiles, the rows that no further tile
        changes; `step` is then called with the tiles' cores.

    Raises:
        MemoryError: even the smallest tile is too large.
    """
    scale = network.card.scale
    height, width, channels = image.shape
    grid = grid_for(tile)
    blend = Blend(width * scale, channels, alpha=alpha) if network.card.tiling == "overlap" else None
    top = 0  # first row of the picture that no core covers yet
    while top < height:
        try:
            bottom, pieces = grid.band(top)
            if blend is None:
                band = rows_of(out, top, bottom, image, scale)
                for batch in grid.batches(pieces):
                    parts = []
                    for piece in batch:
                        first, last = (scale * (piece.left + edge) for edge in piece.columns)
                        parts.append(band[:, first:last])
                    run_tiles(image, network, grid, batch, parts, alpha=alpha)
                    _report(step, batch, top, bottom, scale)
            else:
                adding = blend.extended(min(height, bottom + grid.margin) * scale)
                for batch in grid.batches(pieces):
                    _add_tiles(image, network, grid, batch, adding, alpha=alpha)
                    _report(step, batch, top, bottom, scale)
                first, last = adding.top // scale, height if bottom == height else bottom - grid.margin
                if last > first:
                    band = rows_of(out, first, last, image, scale)
                    store(adding.take(last * scale, _hidden(image[first:last], scale)), band)
                blend = adding
        except MemoryError:
            now = max(grid.tile)
            if now <= SMALLEST_TILE:
                raise
            tile = max(SMALLEST_TILE, now // 2)
            # Bands that are done stay done: tiles of the new grid only have to start where the old ones ended.
            grid = grid_for(tile)
            if smaller is not None:
                smaller(tile)
            continue
        top = bottom
        if blend is None or last > first:
            yield band


def rows_of(out: NDArray | None, top: int, bottom: int, image: NDArray, scale: int) -> NDArray:
    """The part of `out` for some rows of the picture, or an array of its own.

    Args:
        out: array for the whole result, or None.
        top: first row of the picture.
        bottom: row after the last.
        image: the picture.
        scale: s.

    Returns:
        (s·rows, s·W, C).
    """
    if out is not None:
        return out[top * scale : bottom * scale]
    return np.empty(((bottom - top) * scale, image.shape[1] * scale, image.shape[2]), image.dtype)


def _hidden(under: NDArray, scale: int) -> NDArray[np.float32]:
    """Colours behind transparent pixels, each pixel repeated, (h, w, C) to (s·h, s·w, C - 1) in [0, 1]."""
    values = under[..., :-1].astype(np.float32) / np.float32(largest_value(under.dtype))
    return values.repeat(scale, axis=0).repeat(scale, axis=1)


def run_tiles(
    image: NDArray, network: Network, grid: Grid, batch: list[Piece], parts: list[NDArray], *, alpha: bool
) -> None:
    """Run tiles of any picture.

    Args:
        image: picture, (H, W, C), C from 1 to 4.
        network: network to run.
        grid: the picture's grid.
        batch: tiles to run together.
        parts: array for each tile's result.
        alpha: the last channel is alpha.
    """
    if alpha:
        for piece, part in zip(batch, parts, strict=True):
            tile_with_alpha(image, network, grid, piece, part)
    elif image.shape[2] in (2, 4):  # a last channel that is no alpha is enlarged on its own
        for some in (slice(None, -1), slice(-1, None)):
            colour_tiles(image[..., some], network, grid, batch, [part[..., some] for part in parts])
    else:
        colour_tiles(image, network, grid, batch, parts)


def _add_tiles(image: NDArray, network: Network, grid: Grid, batch: list[Piece], blend: Blend, *, alpha: bool) -> None:
    """Tiles of any picture, added to a blend with all that they reach."""
    scale = network.card.scale
    wide = [widened(piece, grid) for piece in batch]
    spans = [(scale * (piece.rows[1] - piece.rows[0]), scale * (piece.columns[1] - piece.columns[0])) for piece in wide]
    parts = [np.empty((*span, image.shape[2]), np.float32) for span in spans]
    run_tiles(image, network, grid, wide, list(parts), alpha=alpha)
    for piece, reach, part in zip(batch, wide, parts, strict=True):
        weights = (
            ramp(piece.top + piece.rows[0], piece.top + piece.rows[1], grid.height, grid.margin, scale),
            ramp(piece.left + piece.columns[0], piece.left + piece.columns[1], grid.width, grid.margin, scale),
        )
        blend.add(part, scale * (piece.top + reach.rows[0]), scale * (piece.left + reach.columns[0]), weights)


def _report(step: Step | None, batch: list[Piece], top: int, bottom: int, scale: int) -> None:
    if step is not None:
        first = scale * (batch[0].left + batch[0].columns[0])
        last = scale * (batch[-1].left + batch[-1].columns[1])
        step((first, top * scale, last, bottom * scale))


def counter(progress: Progress | None, pixels: int, *, passes: int = 1) -> Step | None:
    """Steps of tiles as calls of `progress`.

    Args:
        progress: function called with the megapixels that are done, those in all, and the part just finished.
        pixels: pixels of the whole result.
        passes: how often each pixel is told, by one network after the other.

    Returns:
        A step; None where nobody is told.
    """
    if progress is None:
        return None
    done = 0.0

    def step(region: tuple[int, int, int, int]) -> None:
        nonlocal done
        left, top, right, bottom = region
        done += (right - left) * (bottom - top) / passes
        progress(done / 1e6, pixels / 1e6, region)

    return step
