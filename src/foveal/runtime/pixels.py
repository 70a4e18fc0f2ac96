"""Kinds of pixels, to what a network takes and back: 8 bits, 16 bits and floats; grey, colour and alpha.

A network takes RGB. Grey goes in as three equal channels and comes out as their mean. Alpha is a picture of its own:
colour is multiplied by it, both go through the network, and colour is divided by the new alpha, so what hides behind
transparent pixels cannot shine through as a halo. Where alpha is the same extreme all around, none of that is needed.

8-bit colour takes the bundle's uint8 file if there is one: the bytes of the picture go in, bytes come out, and the last
step, depth to space, is one copy here straight into the picture (a strided view does what costs the engine a pass).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import as_strided

from foveal.runtime.local_range import REACH, hold, keep_grey
from foveal.runtime.network import Network
from foveal.runtime.tiles import cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.runtime.tiles import Grid, Piece

__all__ = ["Network", "colour_tiles", "largest_value", "store", "tile_with_alpha"]

# Alpha within this many input pixels decides that a pixel is surely opaque or surely transparent.
_PIN = 2
# How much alpha may ring where it is surely opaque; more is no ringing.
_RINGING = (0.8, 1.25)


def largest_value(dtype: np.dtype) -> float:
    """The value of white.

    Args:
        dtype: dtype of a picture.

    Returns:
        255, 65535, or 1 for floats.

    Raises:
        TypeError: a dtype that pictures do not have.
    """
    if dtype in (np.uint8, np.uint16):
        return float(np.iinfo(dtype).max)
    if dtype.kind == "f":
        return 1.0
    raise TypeError(f"pixels must be uint8, uint16 or floating point, got {dtype}; convert the array first")


def _shuffle(blocks: NDArray, into: NDArray, scale: int) -> None:
    """Depth to space: blocks (h, w, s·s·3) bytes, each row by row, to (s·h, s·w, 3) bytes in place."""
    height, width = blocks.shape[:2]
    row, line = into.strides[0], 3 * scale
    # The s pixels that a block gives to one row are moved as a whole, or as words, instead of byte by byte.
    item = np.dtype(np.uint32) if line % 4 == 0 else np.dtype((np.void, line))
    target = as_strided(into, (height, width, scale, line), (scale * row, line, row, 1)).view(item)
    y, x, _ = blocks.strides
    source = as_strided(blocks, (height, width, scale, line), (y, x, line, 1)).view(item)
    for k in range(line // item.itemsize):
        target[..., k] = source[..., k]


def _grey_shuffle(blocks: NDArray, into: NDArray, scale: int) -> None:
    """Depth to space of the mean of the three channels: (h, w, s·s·3) bytes to (s·h, s·w, 1)."""
    height, width = blocks.shape[:2]
    mean = np.add(blocks[..., 0::3], blocks[..., 1::3], dtype=np.uint16)
    mean += blocks[..., 2::3]
    mean += 1
    mean //= 3
    # (h, w, s, s) to (h, s, w, s)
    into[..., 0] = mean.reshape(height, width, scale, scale).transpose(0, 2, 1, 3).reshape(into.shape[:2])


def store(values: NDArray, into: NDArray) -> None:
    """Write floats as pixels of the dtype of an array.

    Args:
        values: (s·h, s·w, C), in [0, 1], perhaps a little beyond.
        into: array that is written.
    """
    if into.dtype.kind == "f":
        np.clip(values, 0, 1, out=into, casting="same_kind")
        return
    white = largest_value(into.dtype)
    scaled = np.multiply(values, np.float32(white))
    scaled += np.float32(0.5)
    np.clip(scaled, 0, np.float32(white), out=scaled)
    into[...] = scaled  # the cast cuts off the fraction, which after adding a half rounds


def _window(grid: Grid, piece: Piece) -> tuple[slice, slice]:
    """The used part of a tile within what the network returns for it, in input pixels."""
    skip = 0 if grid.trims else grid.margin
    return (
        slice(skip + piece.rows[0], skip + piece.rows[1]),
        slice(skip + piece.columns[0], skip + piece.columns[1]),
    )


def _times(window: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    rows, columns = window
    return slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)


def colour_tiles(image: NDArray, network: Network, grid: Grid, pieces: list[Piece], into: list[NDArray]) -> None:
    """Run tiles of a grey or RGB picture.

    Args:
        image: picture, (H, W, C), C = 1 or 3.
        network: network to run.
        grid: the picture's grid.
        pieces: tiles to run in one batch.
        into: array for each tile's result.
    """
    count, scale, m = len(pieces), network.card.scale, grid.margin
    grey = image.shape[2] == 1
    if network.kind(image.dtype) == "uint8":
        x = np.empty((count, *grid.side, 3), np.uint8)
        for i, piece in enumerate(pieces):
            cut(image, piece.top - m, piece.left - m, x[i])
        y = network.run("uint8", x)
        for i, piece in enumerate(pieces):
            blocks = y[i][_window(grid, piece)]
            if grey:
                _grey_shuffle(blocks, into[i], scale)
            elif into[i].strides[1] == 3:
                _shuffle(blocks, into[i], scale)
            else:  # the colours of a picture with alpha
                whole = np.empty((*into[i].shape[:2], 3), np.uint8)
                _shuffle(blocks, whole, scale)
                into[i][...] = whole
            _hold(image, network, piece, into[i])
        return
    x = np.empty((count, 3, *grid.side), np.float32)
    for i, piece in enumerate(pieces):
        cut(image, piece.top - m, piece.left - m, x[i].transpose(1, 2, 0), 1 / largest_value(image.dtype))
    y = network.run("float", x)
    for i, piece in enumerate(pieces):
        values = y[i][:, *_times(_window(grid, piece), scale)].transpose(1, 2, 0)
        store(np.clip(values, 0, 1).mean(axis=2, keepdims=True) if grey else values, into[i])
        _hold(image, network, piece, into[i])


def _around_used(image: NDArray, piece: Piece) -> NDArray:
    """The used part of a tile with its neighbourhood."""
    (top, bottom), (left, right) = piece.rows, piece.columns
    around = np.empty((bottom - top + 2 * REACH, right - left + 2 * REACH, image.shape[2]), image.dtype)
    cut(image, piece.top + top - REACH, piece.left + left - REACH, around)
    return around


def _hold(image: NDArray, network: Network, piece: Piece, made: NDArray) -> None:
    """Hold a tile's result within the local range of its source, if the card says so."""
    if network.card.overshoot is None or made.dtype != image.dtype:  # floats that are still to be blended
        return
    around = _around_used(image, piece)
    if network.card.levels and image.shape[2] == 3:
        keep_grey(made, around, network.card.scale)
    hold(made, around, network.card.scale, network.card.overshoot, graphic=network.graphic)


def _around(values: NDArray, radius: int, best: np.ufunc) -> NDArray:
    """Least or largest value within `radius` pixels; (h + 2·radius, w + 2·radius) to (h, w)."""
    for axis in (0, 1):
        length = values.shape[axis] - 2 * radius
        parts = [values[(slice(None),) * axis + (slice(k, k + length),)] for k in range(2 * radius + 1)]
        values = best.reduce(parts)
    return values


def _on_window(block: NDArray, window: tuple[slice, slice], grid: Grid, scale: int) -> NDArray:
    """A block that repeats, as it lies on the used part of what the network returns."""
    offset = grid.margin if grid.trims else 0
    rows, columns = (
        np.arange(scale * (offset + part.start), scale * (offset + part.stop)) % len(block) for part in window
    )
    return block[np.ix_(rows, columns)]


def tile_with_alpha(image: NDArray, network: Network, grid: Grid, piece: Piece, into: NDArray) -> None:
    """Run one tile of a picture whose last channel is alpha.

    Args:
        image: picture, (H, W, C), C = 2 or 4.
        network: network to run.
        grid: the picture's grid.
        piece: tile to run.
        into: array for the tile's result.
    """
    scale, m = network.card.scale, grid.margin
    white, white_out = largest_value(image.dtype), largest_value(into.dtype)
    y0, y1 = max(0, piece.top - m), piece.top - m + grid.side[0]
    x0, x1 = max(0, piece.left - m), piece.left - m + grid.side[1]
    alpha = image[y0:y1, x0:x1, -1]
    low, high = alpha.min(), alpha.max()
    colours = image.shape[2] - 1
    if low >= white:
        colour_tiles(image[..., :-1], network, grid, [piece], [into[..., :-1]])
        into[..., -1] = into.dtype.type(white_out)
        return
    used = (piece.top + piece.rows[0], piece.top + piece.rows[1], piece.left + piece.columns[0])
    under = image[used[0] : used[1], used[2] : piece.left + piece.columns[1], :-1]
    # Behind transparent pixels is whatever was there before, each pixel repeated.
    hidden = under.repeat(scale, axis=0).repeat(scale, axis=1)
    if into.dtype != image.dtype:
        hidden = hidden.astype(into.dtype) * into.dtype.type(white_out / white)
    if high <= 0:
        into[..., :-1] = hidden
        into[..., -1] = 0
        return
    part = np.empty((*grid.side, colours + 1), np.float32)
    cut(image, piece.top - m, piece.left - m, part, 1 / white)
    x = np.empty((2, 3, *grid.side), np.float32)
    np.multiply(part[..., :-1], part[..., -1:], out=x[0].transpose(1, 2, 0))
    x[1] = part[..., -1]
    y = network.run("float", x)
    rows, columns = _window(grid, piece)
    big = _times((rows, columns), scale)
    new_alpha = y[1][:, *big].mean(axis=0)
    # Ringing must not make the inside of a shape a little transparent, nor the far outside a little visible.
    offset = m if grid.trims else 0
    around = np.pad(part[..., -1], _PIN, mode="edge")[
        offset + rows.start : offset + rows.stop + 2 * _PIN, offset + columns.start : offset + columns.stop + 2 * _PIN
    ]
    transparent, opaque = (
        where.repeat(scale, axis=0).repeat(scale, axis=1)
        for where in (_around(around, _PIN, np.maximum) <= 0, _around(around, _PIN, np.minimum) >= 1)
    )
    new_alpha[transparent] = 0
    np.clip(new_alpha, 0, None, out=new_alpha)
    # Where alpha rings around 1, colour that was multiplied by it rings along, and its ringing takes that out again.
    flat = _on_window(network.white(), (rows, columns), grid, scale)
    ringing = np.where(flat > 0.5, np.clip(new_alpha / np.maximum(flat, 0.5), *_RINGING), 1)
    new_alpha[opaque] = 1
    np.clip(new_alpha, 0, 1, out=new_alpha)
    divisor = np.where(opaque, ringing, new_alpha)
    store(new_alpha[..., None], into[..., -1:])
    colour = y[0][:, *big].transpose(1, 2, 0)
    if colours == 1:
        colour = colour.mean(axis=2, keepdims=True)
    visible = into[..., -1:] > 0
    with np.errstate(all="ignore"):
        straight = np.where(visible, colour / divisor[..., None], 0)
    store(straight, into[..., :-1])
    np.copyto(into[..., :-1], hidden, where=~visible)
    if network.card.overshoot is not None and into.dtype == image.dtype:
        _hold_with_alpha(_around_used(image, piece), network, into)


def _hold_with_alpha(around: NDArray, network: Network, into: NDArray) -> None:
    """Hold alpha, and colours where what hides behind transparent pixels does not count."""
    assert network.card.overshoot is not None
    scale, share = network.card.scale, network.card.overshoot
    held = into.copy()
    if network.card.levels and into.shape[2] == 4:
        keep_grey(held[..., :-1], around[..., :-1], scale)
        np.copyto(into, held, where=into[..., -1:] > 0)
    for some in (slice(None, -1), slice(-1, None)):
        part = np.ascontiguousarray(held[..., some])
        hold(part, np.ascontiguousarray(around[..., some]), scale, share, graphic=network.graphic)
        held[..., some] = part
    colours = around[..., :-1]
    seen = _around(around[..., -1], REACH, np.minimum) > 0
    flat = (_around(colours, REACH, np.maximum) == _around(colours, REACH, np.minimum)).all(axis=2)
    trusted = (seen | flat).repeat(scale, axis=0).repeat(scale, axis=1)
    visible = into[..., -1] > 0
    np.copyto(into[..., :-1], held[..., :-1], where=(trusted & visible)[..., None])
    into[..., -1] = held[..., -1]
