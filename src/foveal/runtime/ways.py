"""Ways to repair a picture: by a network tile by tile, or by a formula on the whole picture. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from foveal.runtime.plan import Plan, make_plan
from foveal.runtime.throughput import file_seconds
from foveal.runtime.tiled import tiled
from foveal.runtime.tiles import make_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from foveal.runtime.engine_choice import EngineChoice
    from foveal.runtime.enlarge import Step
    from foveal.runtime.inputs import Size
    from foveal.runtime.network import Network

__all__ = ["Networked", "Way", "Whole", "by_colours"]


def _ignore(_: str) -> None:
    pass


class Way(Protocol):
    """What repairs a picture at its own size; alpha stays, and so does what hides behind transparent pixels."""

    @property
    def name(self) -> str:
        """Name for the user."""
        ...

    def engine(self) -> str:
        """Name of the engine.

        Returns:
            The name.
        """
        ...

    def picture(self, pixels: NDArray, alpha: bool, step: Step | None, note: Callable[[str], None]) -> NDArray:
        """Repair a picture.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            step: function called after each batch of tiles.
            note: function called with what the user should know.

        Returns:
            A new array of the same shape and dtype.
        """
        ...

    def bands(self, pixels: NDArray, alpha: bool, step: Step | None, note: Callable[[str], None]) -> Iterator[NDArray]:
        """Repair a picture, band by band.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            step: function called after each batch of tiles.
            note: function called with what the user should know.

        Returns:
            Bands of rows, (h, W, C), from top to bottom.
        """
        ...

    def plan(self, size: Size, *, threads: int, file_format: str = "") -> Plan:
        """What it will take.

        Args:
            size: of the picture.
            threads: processor threads.
            file_format: format of the result's file; "" if it stays in memory.

        Returns:
            The plan.
        """
        ...


def _merged(pixels: NDArray, colours: NDArray, alpha: bool) -> NDArray:
    """Pixels with other colours where they can be seen."""
    if pixels.shape[2] in (1, 3):
        return colours
    out = pixels.copy()
    np.copyto(out[..., :-1], colours, where=pixels[..., -1:] > 0 if alpha else np.True_)
    return out


def _colours(pixels: NDArray) -> NDArray:
    """All channels but a last of two or four."""
    return np.ascontiguousarray(pixels[..., :-1]) if pixels.shape[2] in (2, 4) else pixels


def by_colours(change: Callable[[NDArray], NDArray]) -> Callable[[NDArray, bool], NDArray]:
    """A change of colours as one of pictures with or without alpha.

    Args:
        change: function from colours to colours, (H, W, 1 or 3).

    Returns:
        Function of pixels and of whether their last channel is alpha.
    """
    return lambda pixels, alpha: _merged(pixels, change(_colours(pixels)), alpha)


@dataclass(frozen=True)
class Networked:
    """By a network.

    Args:
        network: that repairs.
        choice: its engine and tile.
    """

    network: Network
    choice: EngineChoice

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.network.card.name

    def engine(self) -> str:
        """Name of the engine.

        Returns:
            The name.
        """
        return self.choice.engine("float")

    def picture(
        self, pixels: NDArray, alpha: bool, step: Step | None = None, note: Callable[[str], None] = _ignore
    ) -> NDArray:
        """Repair a picture.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            step: function called after each batch of tiles.
            note: function called with what the user should know.

        Returns:
            A new array of the same shape and dtype.
        """
        colours = _colours(pixels)
        out = np.empty_like(colours)
        for _ in tiled(colours, self.network, self.choice, alpha=False, out=out, step=step, note=note):
            pass
        return _merged(pixels, out, alpha)

    def bands(
        self, pixels: NDArray, alpha: bool, step: Step | None = None, note: Callable[[str], None] = _ignore
    ) -> Iterator[NDArray]:
        """Repair a picture, band by band.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            step: function called after each batch of tiles.
            note: function called with what the user should know.

        Yields:
            Bands of rows, (h, W, C), from top to bottom.
        """
        top = 0
        for band in tiled(_colours(pixels), self.network, self.choice, alpha=False, step=step, note=note):
            rows = pixels[top : top + len(band)]
            top += len(band)
            yield _merged(rows, band, alpha)

    def plan(self, size: Size, *, threads: int, file_format: str = "") -> Plan:
        """What it will take.

        Args:
            size: of the picture.
            threads: processor threads.
            file_format: format of the result's file; "" if it stays in memory.

        Returns:
            The plan.

        Raises:
            EngineError: no engine runs the bundle.
        """
        pixel_bytes = size.channels * size.dtype.itemsize
        kind = self.network.kind(size.dtype)
        throughput = self.choice.throughput(kind)
        grid = make_grid(
            size.height, size.width, self.choice.tile(kind), self.network.card, automatic=self.choice.automatic,
            pixel_bytes=pixel_bytes,
        )  # fmt: skip
        return make_plan(
            self.choice.bundle, self.choice.engine(kind), throughput, grid, threads, pixel_bytes=pixel_bytes,
            frames=size.frames, file_format=file_format,
        )  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """By a formula, on the whole picture.

    Args:
        name: name for the user.
        make: function from pixels, (H, W, C), and whether the last channel is alpha, to repaired ones.
        pace: seconds a megapixel of three colours, roughly.
        copies: how often the picture is in memory at once, as floats.
    """

    name: str
    make: Callable[[NDArray, bool], NDArray]
    pace: float
    copies: float = 2.0

    def engine(self) -> str:
        """What computes it.

        Returns:
            "numpy".
        """
        return "numpy"

    def picture(
        self,
        pixels: NDArray,
        alpha: bool,
        step: Step | None = None,
        note: Callable[[str], None] = _ignore,  # noqa: ARG002
    ) -> NDArray:
        """Repair a picture.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            step: function called when it is done.
            note: takes no part.

        Returns:
            A new array of the same shape and dtype.
        """
        made = self.make(pixels, alpha)
        if step is not None:
            step((0, 0, pixels.shape[1], pixels.shape[0]))
        return made

    def bands(
        self, pixels: NDArray, alpha: bool, step: Step | None = None, note: Callable[[str], None] = _ignore
    ) -> Iterator[NDArray]:
        """Repair a picture.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            step: function called when it is done.
            note: takes no part.

        Yields:
            The picture.
        """
        yield self.picture(pixels, alpha, step, note)

    def plan(self, size: Size, *, threads: int, file_format: str = "") -> Plan:
        """What it will take.

        Args:
            size: of the picture.
            threads: processor threads, of which one works.
            file_format: format of the result's file; "" if it stays in memory.

        Returns:
            The plan.
        """
        pixels = size.width * size.height
        plan = Plan(
            self.name, "numpy", threads, 1, size.width, size.height, size.frames, (size.width, size.height), 1, 1, 0,
            int(80e6 + self.copies * pixels * size.channels * 8), self.pace * pixels * size.frames / 1e6,
        )  # fmt: skip
        if not file_format:
            return plan
        return replace(plan, seconds=plan.seconds + file_seconds(file_format) * plan.megapixels)
