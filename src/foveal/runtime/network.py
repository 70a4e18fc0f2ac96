"""A bundle's network in one engine: opened when it is first needed, run, and its answers looked at. NumPy only."""

from __future__ import annotations

import copy
import math
import time
from typing import TYPE_CHECKING

import numpy as np

from foveal.runtime.engines import Engine, EngineError, PixelKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foveal.runtime.card import Card

__all__ = ["Network"]

# As it is, upside down, left to right, and both; what is mirrored twice is as it was.
_MIRRORED = tuple((..., slice(None, None, y), slice(None, None, x)) for y in (1, -1) for x in (1, -1))
# Every so many pixels one is looked at for output that is black where the picture is bright.
_LOOK = 8


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
        self.graphic = False
        self._spent = [0.0]
        self.ways = _MIRRORED if mirrored and not card.equivariant else _MIRRORED[:1]
        self._open = open_file
        self._engines: dict[PixelKind, Engine] = {}
        self._white: NDArray | None = None

    @property
    def seconds(self) -> float:
        """Time that was spent in the engine."""
        return self._spent[0]

    def for_graphics(self) -> Network:
        """The same network for pictures that are drawn: in floats, and held closer to the range of the source.

        Returns:
            A network that shares its engines.
        """
        twin = copy.copy(self)
        twin.graphic = True
        return twin

    def kind(self, dtype: np.dtype) -> PixelKind:
        """Which file runs pixels of a dtype.

        Args:
            dtype: dtype of a picture.

        Returns:
            "uint8" or "float".
        """
        # The mean, of mirror images or of tiles, is taken of what has not been rounded yet.
        # At the edges of what is drawn, the roundings of bytes can be seen.
        once = len(self.ways) == 1 and self.card.tiling == "exact" and not self.graphic
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
        self._spent[0] += time.perf_counter() - start
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
        if self.card.purpose != "restoration":  # beneath a flake of snow, black may be what is right
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
