"""A picture by two networks: the larger where it pays, the smaller elsewhere, within a share of the larger one's work.

What a place is expected to gain is read from the source (`difficulty.py`), rectangles are chosen once for the whole
picture (`allotment.py`), and each is run with its network's own margin, so it holds the very pixels that this network
would make of the whole picture. Work is counted in multiply-adds; a share of 1 is the larger network alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from foveal.runtime import difficulty
from foveal.runtime.allotment import Allotment, Part, allot, mesh_for, work
from foveal.runtime.bundle import SHIPPED, available
from foveal.runtime.card import QUALITIES, BundleError
from foveal.runtime.cleaning import Cleaner, Look
from foveal.runtime.engine_choice import EngineChoice
from foveal.runtime.enlarge import Step, rows_of, run_tiles
from foveal.runtime.local_range import is_graphic
from foveal.runtime.network import Network
from foveal.runtime.route import Route, recorded
from foveal.runtime.tiled import network_name
from foveal.runtime.tiles import SMALLEST_TILE, Piece, grid_of, make_grid, round_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from foveal.runtime.bundle import Bundle
    from foveal.runtime.inputs import Taken
    from foveal.runtime.plan import Plan

__all__ = ["Budget", "Shared", "checked_budget", "smaller"]


def checked_budget(budget: float) -> float:
    """A budget as it is used.

    Args:
        budget: share of the network's work, in (0, 1].

    Returns:
        The share.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget!r}; 0.5 is half of the network's work, 1 all of it")
    return float(budget)


def smaller(bundle: Bundle) -> Bundle | None:
    """The fastest bundle beside another that does the same with less work.

    Args:
        bundle: any.

    Returns:
        A bundle of a lower quality in the same folder, with the same purpose and scale, which cleans if that one does;
        None where there is none.
    """
    card = bundle.card
    if card.quality not in QUALITIES:
        return None
    try:
        beside = available(None if bundle.folder.parent == SHIPPED else bundle.folder.parent)
    except BundleError:  # something else lies there
        return None
    fitting = [
        b
        for b in beside
        if (b.card.purpose, b.card.scale, bool(b.card.levels)) == (card.purpose, card.scale, bool(card.levels))
        and b.card.quality in QUALITIES[: QUALITIES.index(card.quality)]
        and b.card.parameters < card.parameters
    ]
    return min(fitting, key=lambda b: b.card.parameters, default=None)


@dataclass(frozen=True, eq=False)
class Shared:
    """How a picture is shared between two networks.

    Args:
        allotment: its rectangles.
        whole: multiply-adds of the larger network on the whole picture.
    """

    allotment: Allotment
    whole: float

    @property
    def spent(self) -> float:
        """Work over that of the larger network alone."""
        return self.allotment.work / self.whole

    def route(self, light: float) -> Route:
        """The map of where work went.

        Args:
            light: work of the smaller network over that of the larger, for the same place.

        Returns:
            Route of one stage, in multiply-adds.
        """
        places = np.where(self.allotment.where, 1.0, light).astype(np.float32)
        return Route(places[None], (self.allotment.work,), (self.whole,), "multiply-adds")


class Budget:
    """The smaller networks beside those of an upscaler, and the runs of both.

    Args:
        share: share of the larger network's work, in (0, 1).
        bundle: bundle for clean pictures.
        cleans: bundle for damaged pictures, or None.
        engine: engine that the user wants, or "auto".
        threads: processor threads.
        tile: side of a tile in input pixels, or "auto".

    Attributes:
        share: the share.
        bundle: the smaller bundle for clean pictures.

    Raises:
        ValueError: no smaller bundle, or a network that cannot be run in parts.
    """

    def __init__(
        self, share: float, bundle: Bundle, cleans: Bundle | None, engine: str, threads: int, tile: int | str
    ) -> None:
        card = bundle.card
        found = smaller(bundle)
        if card.tiling != "exact":
            raise ValueError(
                f"budget={share:g} runs parts of a picture, and {card.name} looks at all of it; leave out budget"
            )
        if found is None and card.quality == QUALITIES[0]:
            raise ValueError(
                f"budget={share:g} asks for a smaller network, and {card.name} is the smallest; take quality balanced, "
                "or leave out budget"
            )
        if found is None:
            raise ValueError(
                f"budget={share:g} asks for a smaller network beside {card.name}, and there is none of a lower quality "
                f"×{card.scale} in {bundle.folder.parent}; put one there, or leave out budget"
            )
        self.share, self.bundle = share, found
        self._choice = EngineChoice(found, engine, threads, tile)
        self._network = Network(found.card, self._choice.open)
        self._cleans = None if cleans is None else smaller(cleans)
        self._make_cleaner = lambda b: Cleaner(b, engine, threads, tile, mirrored=False)
        self._cleaner: Cleaner | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about engines."""
        return (*self._choice.notes, *(() if self._cleaner is None else self._cleaner.choice.notes))

    @property
    def settings(self) -> str:
        """What results depend on besides the larger bundles."""
        prints = [b.fingerprint for b in (self.bundle, self._cleans) if b is not None]
        return f" budget {self.share:g} {' '.join(prints)}"

    def choices(self) -> Iterator[EngineChoice]:
        """Engines of the smaller networks.

        Yields:
            The choice for clean pictures, then that for damaged ones if they are cleaned.
        """
        yield self._choice
        if self._cleans is not None and not self._cleaning().why_not():
            yield self._cleaning().choice

    def _cleaning(self) -> Cleaner:
        if self._cleaner is None:
            assert self._cleans is not None
            self._cleaner = self._make_cleaner(self._cleans)
        return self._cleaner

    def way(self, look: Look) -> Network | None:
        """The smaller network that a picture takes.

        Args:
            look: what the picture has been through.

        Returns:
            The network; None where there is none beside the larger.
        """
        if look.level is None:
            return self._network
        return None if self._cleans is None else self._cleaning().network(look.level)

    def shared(self, pixels: NDArray, large: Network, choice: EngineChoice, small: Network, *, alpha: bool) -> Shared:
        """Share a picture.

        Args:
            pixels: (H, W, C).
            large: larger network.
            choice: its engine and tile.
            small: smaller network.
            alpha: the last channel is alpha.

        Returns:
            What each network makes.
        """
        height, width = pixels.shape[:2]
        grid = make_grid(
            height, width, choice.tile(large.kind(pixels.dtype)), large.card, automatic=choice.automatic,
            pixel_bytes=pixels.shape[2] * pixels.itemsize,
        )  # fmt: skip
        mesh = mesh_for((height, width), grid.tile, int(np.lcm(large.card.multiple, small.card.multiple)))
        works = (partial(work, large.card, times=len(large.ways)), partial(work, small.card, times=len(small.ways)))
        whole = grid.tiles * float(works[0](*grid.tile))
        gain = difficulty.expected_gain(pixels, mesh.cell, alpha=alpha)
        return Shared(allot(gain, mesh, self.share * whole, works), whole)

    def said(self, shared: Shared, large: Network, small: Network) -> str:
        """What the user should read about a picture.

        Args:
            shared: how it is shared.
            large: larger network.
            small: smaller network.

        Returns:
            A sentence.
        """
        text = (
            f"budget {self.share:g}: {network_name(large)} for {shared.allotment.share:.0%} of the picture, "
            f"{network_name(small)} for the rest, {shared.spent:.2f} of the work"
        )
        return text if shared.spent <= self.share else f"{text}, the least there is"

    def planned(
        self, plan: Plan, running: float, large: Network, choice: EngineChoice, small: Network, taken: Taken | None
    ) -> Plan:
        """The plan of a shared picture.

        Args:
            plan: plan of the larger network.
            running: seconds of it that this network runs.
            large: larger network.
            choice: its engine and tile.
            small: smaller network.
            taken: the picture; None to foresee no more than seconds.

        Returns:
            The plan; of a picture that is given, with a note of what each network makes.
        """
        light = small.card.parameters * len(small.ways) / (large.card.parameters * len(large.ways))
        least, notes = max(self.share, light), plan.notes
        if taken is not None:
            shared = self.shared(taken.frames[0], large, choice, small, alpha=taken.alpha)
            least, notes = shared.spent, (*notes, self.said(shared, large, small))
        return replace(plan, seconds=plan.seconds - running * max(0.0, 1 - least), notes=notes)

    def bands(
        self,
        pixels: NDArray,
        large: Network,
        choice: EngineChoice,
        small: Network,
        *,
        alpha: bool,
        step: Step | None = None,
        out: NDArray | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Iterator[NDArray]:
        """Run a picture through both networks.

        Args:
            pixels: (H, W, C).
            large: larger network.
            choice: its engine and tile.
            small: smaller network.
            alpha: the last channel is alpha.
            step: function called after each block.
            out: array for the result; by default each band is an array of its own.
            note: function called with what the user should know.

        Yields:
            Bands, (s·n, s·W, C).
        """
        if large.card.overshoot is not None and is_graphic(pixels):
            large, small = large.for_graphics(), small.for_graphics()
        shared = self.shared(pixels, large, choice, small, alpha=alpha)
        note(self.said(shared, large, small))
        if (routes := recorded()) is not None:
            light = small.card.parameters * len(small.ways) / (large.card.parameters * len(large.ways))
            routes.append(shared.route(light))
        scale, most = large.card.scale, {True: max(pixels.shape), False: max(pixels.shape)}
        try:
            for blocks in shared.allotment.bands:
                top, bottom = blocks[0][0].top, blocks[0][0].top + blocks[0][0].height
                band = rows_of(out, top, bottom, pixels, scale)
                for first, *others in blocks:
                    for part in (first, *others):
                        side = _run(
                            pixels, large if part.large else small, part, band, top, most[part.large], alpha=alpha
                        )
                        if side < most[part.large]:
                            note(f"out of memory: went on with tiles of {side}")
                        most[part.large] = side
                    if step is not None:
                        left, right = first.left, first.left + first.width
                        step((scale * left, scale * top, scale * right, scale * bottom))
                yield band
        except Exception as error:
            error.add_note(
                f"while {network_name(large)} and {network_name(small)} shared a picture of {pixels.shape[1]}×"
                f"{pixels.shape[0]}"
            )
            raise


def _run(pixels: NDArray, network: Network, part: Part, band: NDArray, top: int, most: int, *, alpha: bool) -> int:
    """Run one rectangle into its band, which begins at row `top` of the picture.

    Args:
        pixels: (H, W, C).
        network: network to run.
        part: the rectangle.
        band: result of its band.
        top: first row of the band in the picture.
        most: largest side of a tile.
        alpha: the last channel is alpha.

    Returns:
        The same, or what memory sufficed for.
    """
    (height, width), scale, multiple = pixels.shape[:2], network.card.scale, network.card.multiple
    core = tuple(round_up(min(most, side), multiple) for side in (part.height, part.width))
    grid = grid_of(height, width, (core[0], core[1]), network.card)
    try:
        for y in range(part.top, part.top + part.height, core[0]):
            for x in range(part.left, part.left + part.width, core[1]):
                rows, columns = min(core[0], part.top + part.height - y), min(core[1], part.left + part.width - x)
                made = band[scale * (y - top) : scale * (y - top + rows), scale * x : scale * (x + columns)]
                run_tiles(pixels, network, grid, [Piece(y, x, (0, rows), (0, columns))], [made], alpha=alpha)
    except MemoryError:
        if max(core) <= SMALLEST_TILE:
            raise
        return _run(pixels, network, part, band, top, max(SMALLEST_TILE, max(core) // 2), alpha=alpha)
    return most
