"""Kinds of pixels, to what a network takes and back: 8 bits, 16 bits and floats; grey, colour and alpha.

A network takes RGB. Grey goes in as three equal channels and comes out as their mean. Alpha is a picture of its own:
colour is multiplied by it, both go through the network, and colour is divided by the new alpha, so what hides behind
transparent pixels cannot shine through as a halo. Where alpha is the same extreme all around, none of that is needed.

8-bit colour takes the bundle's uint8 file if there is one: the bytes of the picture go in, bytes come out, and the last
step, depth to space, is one copy here straight into the picture (a strided view does what costs the engine a pass).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import as_strided

from foveal.runtime.engines import Engine, EngineError, PixelKind
from foveal.runtime.tiles import cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foveal.runtime.card import Card
    from foveal.runtime.tiles import Grid, Piece

__all__ = ["Network", "colour_tiles", "largest_value", "store", "tile_with_alpha"]

# Alpha within this many input pixels decides that a pixel is surely opaque or surely transparent.
_PIN = 2
# As it is, upside down, left to right, and both; what is mirrored twice is as it was.
_MIRRORED = tuple((..., slice(None, None, y), slice(None, None, x)) for y in (1, -1) for x in (1, -1))
# How much alpha may ring where it is surely opaque; more is no ringing.
_RINGING = (0.8, 1.25)
# Every so many pixels one is looked at for output that is black where the picture is bright.
_LOOK = 8


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


class Network:
    """A bundle's files, opened in one engine when they are first needed.

    Args:
        card: card of the bundle.
        open_file: function from the kind of pixels to an engine with the file for them.
        mirrored: take the mean of what the network makes of a tile and of its mirror images, which costs four times as
            much (R. Timofte et al., "Seven ways to improve example-based single image super resolution", CVPR 2016);
            an equivariant network would say the same four times, and is asked once.
    """

    def __init__(self, card: Card, open_file: Callable[[PixelKind], Engine], *, mirrored: bool = False) -> None:
        self.card = card
        self.seconds = 0.0
        self.ways = _MIRRORED if mirrored and not card.equivariant else _MIRRORED[:1]
        self._open = open_file
        self._engines: dict[PixelKind, Engine] = {}
        self._white: NDArray | None = None

    def kind(self, dtype: np.dtype) -> PixelKind:
        """Which file runs pixels of a dtype.

        Args:
            dtype: dtype of a picture.

        Returns:
            "uint8" or "float".
        """
        # The mean, of mirror images or of tiles, is taken of what has not been rounded yet.
        once = len(self.ways) == 1 and self.card.tiling == "exact"
        return "uint8" if dtype == np.uint8 and "uint8" in self.card.files and once else "float"

    def prepare(self, kind: PixelKind) -> Engine:
        """Open a file, if it is not open.

        Args:
            kind: kind of the pixels.

        Returns:
            The engine that runs it.
        """
        if kind not in self._engines:
            self._engines[kind] = self._open(kind)
        return self._engines[kind]

    def white(self) -> NDArray:
        """What the network makes of a white picture, away from its edges: 1 everywhere, or nearly.

        Returns:
            One block of the pattern, the mean of the channels, (s·multiple, s·multiple).
        """
        if self._white is None:
            card = self.card
            first = -(-card.margin // card.multiple) * card.multiple
            side = max(2 * first + card.multiple, -(-card.minimum // card.multiple) * card.multiple)
            y = self.run("float", np.ones((1, 3, side, side), np.float32))[0].mean(axis=0)
            at = card.scale * (first - card.margin if card.trims else first)
            size = card.scale * card.multiple
            self._white = y[at : at + size, at : at + size].copy()
        return self._white

    def run(self, kind: PixelKind, x: NDArray) -> NDArray:
        """Compute the network once and look at what it made.

        Args:
            kind: "float", x: (N, 3, h, w) float32; or "uint8", x: (N, h, w, 3) bytes.
            x: input.

        Returns:
            "float": (N, 3, s·h', s·w') float32; "uint8": (N, h', w', s·s·3) bytes. The next call may overwrite it.

        Raises:
            EngineError: the output is not of the size the card promises, holds something that is no number, or is black
                where the input is bright.
        """
        engine = self.prepare(kind)
        start = time.perf_counter()
        if len(x) > 1 and not self.card.batches:
            return np.concatenate([self.run(kind, x[i : i + 1]).copy() for i in range(len(x))])
        y = self._mean(engine, x) if len(self.ways) > 1 else engine.run(x)
        self.seconds += time.perf_counter() - start
        scale, lost = self.card.scale, 2 * self.card.margin if self.card.trims else 0
        if kind == "uint8":
            count, height, width = x.shape[:3]
            wanted: tuple[int, ...] = (count, height - lost, width - lost, 3 * scale * scale)
        else:
            count, _, height, width = x.shape
            wanted = (count, 3, scale * (height - lost), scale * (width - lost))
        if y.shape != wanted:
            raise EngineError(
                f"{engine.name}: {self.card.name} made an output of shape {y.shape} where its card promises {wanted}; "
                "the bundle does not match its card"
            )
        # One sum shows every NaN and infinity there is.
        if kind == "float" and not math.isfinite(float(y.sum(dtype=np.float64))):
            raise EngineError(f"{engine.name}: {self.card.name} made values that are no numbers; try another --engine")
        self._look_for_black(engine.name, kind, x, y)
        return y

    def _mean(self, engine: Engine, x: NDArray) -> NDArray:
        """Over the ways to mirror x, (N, 3, h, w); each result is mirrored back."""
        total: NDArray | None = None
        for way in self.ways:
            y = engine.run(np.ascontiguousarray(x[way]))[way]
            total = y.astype(np.float32) if total is None else np.add(total, y, out=total)
        assert total is not None
        total /= len(self.ways)
        return total

    def _look_for_black(self, engine: str, kind: PixelKind, x: NDArray, y: NDArray) -> None:
        """Raise if a pixel that is bright, as are all its neighbours, became black: no network means to do that."""
        lost, s = self.card.margin if self.card.trims else 0, self.card.scale
        first = max(lost, 1)
        before = x if kind == "uint8" else x.transpose(0, 2, 3, 1)  # (N, h, w, 3)
        height, width = (length - 2 * first for length in before.shape[1:3])
        if height < 1 or width < 1:
            return
        at = first - lost
        if kind == "uint8":
            blocks = y[:, at : at + height : _LOOK, at : at + width : _LOOK]  # (N, h, w, s·s·3)
            dark = ~blocks.any(axis=-1)
        else:
            corners = [
                y[:, :, s * at + k : s * (at + height) : s * _LOOK, s * at + k : s * (at + width) : s * _LOOK]
                for k in (0, s - 1)
            ]
            dark = np.maximum(*corners).max(axis=1) <= 0
        if not dark.any():
            return
        bright = np.ones(dark.shape, bool)
        limit = 96 if kind == "uint8" else 96 / 255
        for dy, dx in np.ndindex(3, 3):
            top, left = first + dy - 1, first + dx - 1
            bright &= before[:, top : top + height : _LOOK, left : left + width : _LOOK].min(axis=-1) > limit
        if (dark & bright).any():
            raise EngineError(
                f"{engine}: {self.card.name} made black pixels where the picture is bright; try another --engine"
            )


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
        return
    x = np.empty((count, 3, *grid.side), np.float32)
    for i, piece in enumerate(pieces):
        cut(image, piece.top - m, piece.left - m, x[i].transpose(1, 2, 0), 1 / largest_value(image.dtype))
    y = network.run("float", x)
    for i, piece in enumerate(pieces):
        values = y[i][:, *_times(_window(grid, piece), scale)].transpose(1, 2, 0)
        store(np.clip(values, 0, 1).mean(axis=2, keepdims=True) if grey else values, into[i])


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
