"""A picture in memory through one network: its grid, and what happens when memory does not suffice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal.runtime.enlarge import Step, enlarge
from foveal.runtime.local_range import is_graphic
from foveal.runtime.tiles import Grid, make_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from foveal.runtime.engine_choice import EngineChoice
    from foveal.runtime.network import Network

__all__ = ["network_name", "tiled"]


def network_name(network: Network) -> str:
    """A network's name for the user.

    Args:
        network: any.

    Returns:
        Its bundle's name, and whether mirror images take part.
    """
    return f"{network.card.name} mirrored" if len(network.ways) > 1 else network.card.name


def tiled(
    pixels: NDArray,
    network: Network,
    choice: EngineChoice,
    *,
    alpha: bool,
    step: Step | None = None,
    out: NDArray | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[NDArray]:
    """Run a picture through a network, tile by tile.

    Args:
        pixels: (H, W, C).
        network: network to run.
        choice: its engine and tile.
        alpha: the last channel is alpha.
        step: function called after each batch of tiles.
        out: array for the result; by default each band is an array of its own.
        note: function called with what the user should know.

    Yields:
        Bands, (s·n, s·W, C).
    """
    if network.card.overshoot is not None and is_graphic(pixels):
        network = network.for_graphics()
    kind = network.kind(pixels.dtype)
    first = choice.tile(kind)
    pixel_bytes = pixels.shape[2] * pixels.itemsize
    height, width = pixels.shape[:2]

    def grid_of(tile: int, *, automatic: bool) -> Grid:
        return make_grid(height, width, tile, network.card, automatic=automatic, pixel_bytes=pixel_bytes)

    grid = grid_of(first, automatic=choice.automatic)

    def grid_for(tile: int) -> Grid:
        nonlocal grid
        # After running out of memory a tile must not grow by the half that automatic tiles may.
        grid = grid_of(tile, automatic=choice.automatic and tile == first)
        return grid

    def smaller(tile: int) -> None:
        note(f"out of memory: went on with tiles of {tile}")

    try:
        yield from enlarge(pixels, network, grid_for, first, alpha=alpha, out=out, step=step, smaller=smaller)
    except Exception as error:
        rows, columns = grid.tile
        error.add_note(
            f"while {network_name(network)} ran in {choice.name(kind)} with tiles of {columns}×{rows} on a picture of "
            f"{width}×{height}"
        )
        raise
