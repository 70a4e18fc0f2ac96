"""Plans: which engine, which tiles, how much memory and how many seconds a picture takes, before the work starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from foveal.images.fit import encoding_bytes
from foveal.runtime.engines import engine_kind
from foveal.runtime.throughput import Cache, Throughput, file_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foveal.runtime.bundle import Bundle
    from foveal.runtime.card import Card
    from foveal.runtime.tiles import Grid

__all__ = ["Plan", "make_plan", "memory"]


def memory(grid: Grid, card: Card, engine: str, pixel_bytes: int, *, whole: bool) -> int:
    """An estimate of the memory that a picture takes, the process included.

    Args:
        grid: tiles of the picture.
        card: card of the bundle.
        engine: name of the engine.
        pixel_bytes: bytes of one pixel of the picture.
        whole: keep the result in memory instead of writing it band by band.

    Returns:
        Bytes.
    """
    source = grid.height * grid.width * pixel_bytes
    # A band being made, one waiting, one being written.
    rows = grid.height if whole else min(grid.height, 3 * grid.tile[0])
    result = rows * grid.width * card.scale**2 * pixel_bytes
    # Width of the hidden layers, were the parameters spread over as many 3×3 layers as the margin allows.
    channels = max(3 * card.scale**2, (card.parameters / (9 * max(1, card.margin))) ** 0.5)
    tiles = min(grid.batch, grid.columns) * grid.side[0] * grid.side[1]
    # Overlapping tiles are summed in floats: up to four channels and their weight, for a band and its overlap.
    blended = (grid.tile[0] + 2 * grid.margin) * grid.width * card.scale**2 * 20 if card.tiling == "overlap" else 0
    return int(engine_kind(engine).process_bytes + source + result + blended + tiles * channels * 4 * 3)


@dataclass(frozen=True)
class Plan:
    """What will be done to one picture.

    Args:
        bundle: name of the bundle.
        engine: name of the engine.
        threads: processor threads.
        scale: output side over input side.
        width: width of the picture, in pixels.
        height: height of the picture.
        frames: number of frames, 1 for a still picture.
        tile: (width, height) of a tile, in input pixels.
        tiles: number of tiles of one frame.
        batch: number of tiles run together.
        margin: pixels of surroundings that every tile is given.
        memory: estimated bytes.
        seconds: estimated seconds.
        start: seconds of these for opening the engine, spent once for many pictures.
        notes: sentences the user should read.
        clean: what the picture has been through and what is done about it; None where nothing is cleaned.
    """

    bundle: str
    engine: str
    threads: int
    scale: int
    width: int
    height: int
    frames: int
    tile: tuple[int, int]
    tiles: int
    batch: int
    margin: int
    memory: int
    seconds: float
    start: float = 0.0
    notes: tuple[str, ...] = ()
    clean: Mapping[str, Any] | None = None

    @property
    def megapixels(self) -> float:
        """Of the result, all frames."""
        return self.width * self.height * self.frames * self.scale**2 / 1e6

    def __str__(self) -> str:
        frames = f" × {self.frames} frames" if self.frames > 1 else ""
        tiles = "1 tile" if self.tiles == 1 else f"{self.tiles} tiles"
        return (
            f"{self.width}×{self.height} → {self.width * self.scale}×{self.height * self.scale}{frames}, "
            f"{self.megapixels:.{1 if self.megapixels >= 1 else 2}f} MP; "
            f"{self.bundle} with {self.engine}, {self.threads} thread{'s' if self.threads > 1 else ''}; "
            f"{tiles} of {self.tile[0]}×{self.tile[1]} + {self.margin}; "
            f"about {self.memory / 1e6:.0f} MB and {self.seconds:.2g} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data.

        Returns:
            Its fields, and `megapixels`.
        """
        return {**asdict(self), "tile": list(self.tile), "notes": list(self.notes), "megapixels": self.megapixels}


def make_plan(
    bundle: Bundle,
    engine: str,
    throughput: Throughput,
    grid: Grid,
    threads: int,
    *,
    pixel_bytes: int = 3,
    frames: int = 1,
    file_format: str = "",
    cache: Cache | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Put a plan together.

    Args:
        bundle: bundle to run.
        engine: name of the engine.
        throughput: throughput of the bundle in that engine.
        grid: tiles of the picture.
        threads: processor threads.
        pixel_bytes: bytes of one pixel of the picture.
        frames: number of frames.
        file_format: format of the result's file; "" if it stays in memory.
        cache: cache of the seconds for reading and writing.
        notes: sentences the user should read.

    Returns:
        The plan.
    """
    seconds = throughput.load + throughput.seconds * grid.pixels * frames / 1e6
    megapixels = grid.height * grid.width * frames * bundle.card.scale**2 / 1e6
    if file_format:
        seconds += file_seconds(file_format, cache) * megapixels
    return Plan(
        bundle=bundle.card.name,
        engine=engine,
        threads=threads,
        scale=bundle.card.scale,
        width=grid.width,
        height=grid.height,
        frames=frames,
        tile=(grid.tile[1], grid.tile[0]),
        tiles=grid.tiles,
        batch=min(grid.batch, grid.columns),
        margin=grid.margin,
        memory=memory(grid, bundle.card, engine, pixel_bytes, whole=not file_format)
        + encoding_bytes(
            file_format, grid.width * bundle.card.scale, grid.height * bundle.card.scale, frames, pixel_bytes
        ),
        seconds=seconds,
        start=throughput.load,
        notes=notes,
    )
