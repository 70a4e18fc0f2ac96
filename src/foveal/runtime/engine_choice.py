"""The engine and the tile that run a bundle here, for each kind of pixels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from foveal.runtime.engines import Engine, PixelKind, create, engine_kind, file_kind
from foveal.runtime.throughput import Throughput, calibrate, learn_load, pick_engine, remembered

if TYPE_CHECKING:
    from foveal.runtime.bundle import Bundle

__all__ = ["EngineChoice"]

_DEFAULT_TILE = 256  # as long as nothing was measured here


class EngineChoice:
    """Engine, throughput and tile for each kind of pixels, found when first needed and kept.

    Args:
        bundle: bundle to run.
        wanted: name of an engine, or "auto" for the fastest here.
        threads: processor threads.
        tile: side of a tile in input pixels, or "auto" for the best here.

    Attributes:
        notes: sentences the user should read about engines that had to be left out.

    Raises:
        ValueError: no such engine, or a tile that cannot be.
    """

    def __init__(self, bundle: Bundle, wanted: str, threads: int, tile: int | str) -> None:
        if tile != "auto" and (not isinstance(tile, int) or tile < 1):
            raise ValueError(f'tile must be "auto" or a number of pixels of at least 1, got {tile!r}')
        if wanted != "auto":
            engine_kind(wanted)
        self.bundle, self.wanted, self.threads, self._given = bundle, wanted, threads, tile
        self.notes: tuple[str, ...] = ()
        self._engines: dict[PixelKind, str] = {}
        self._throughputs: dict[PixelKind, Throughput] = {}
        self._tiles: dict[PixelKind, int] = {}

    @property
    def measured(self) -> tuple[PixelKind, ...]:
        """Kinds of pixels whose throughput is known."""
        return tuple(self._throughputs)

    @property
    def automatic(self) -> bool:
        """Whether the tile may be changed to fit a picture."""
        return self._given == "auto"

    def engine(self, kind: PixelKind) -> str:
        """Name of the engine, chosen now if it was not before.

        Args:
            kind: kind of the pixels.

        Returns:
            The name.
        """
        if kind not in self._engines:
            name, note = pick_engine(self.wanted, self.bundle, self.threads, kind)
            self._engines[kind] = name
            if note and note not in self.notes:
                self.notes += (note,)
        return self._engines[kind]

    def name(self, kind: PixelKind) -> str:
        """What is known of the engine without choosing it.

        Args:
            kind: kind of the pixels.

        Returns:
            Its name, or what was wanted.
        """
        return self._engines.get(kind, self.wanted)

    def open(self, kind: PixelKind) -> Engine:
        """Open the engine, and remember how long that took.

        Args:
            kind: kind of the pixels.

        Returns:
            The engine with the bundle's file for these pixels.
        """
        name = self.engine(kind)
        path = self.bundle.file(file_kind(name, kind, self.bundle.card.files))
        start = time.perf_counter()
        opened = create(name, path, self.threads, exact=kind == "float")
        learn_load(self.bundle, name, self.threads, kind, time.perf_counter() - start)
        return opened

    def throughput(self, kind: PixelKind) -> Throughput:
        """Throughput of the engine, measured now if it never was on this machine.

        Args:
            kind: kind of the pixels.

        Returns:
            The throughput.
        """
        if kind not in self._throughputs:
            self._know(kind, calibrate(self.bundle, self.engine(kind), self.threads, kind))
        return self._throughputs[kind]

    def tile(self, kind: PixelKind) -> int:
        """Side of a tile; nothing is measured to find it.

        Args:
            kind: kind of the pixels.

        Returns:
            The side in input pixels.
        """
        if isinstance(self._given, int):
            return self._given
        if kind not in self._tiles:  # looked up once: a small picture takes less time than the look
            self._tiles[kind] = _DEFAULT_TILE
            if (found := remembered(self.bundle, self.engine(kind), self.threads, kind)) is not None:
                self._know(kind, found)
        return self._tiles[kind]

    def _know(self, kind: PixelKind, found: Throughput) -> None:
        self._throughputs[kind] = found
        self._tiles[kind] = found.tile
