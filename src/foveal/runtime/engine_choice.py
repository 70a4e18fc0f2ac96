"""The engine and the tile that run a bundle here, for each kind of pixels."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.runtime.engines import Engine, EngineError, FileKind, PixelKind, create, engine_kind, file_kind, why_not
from foveal.runtime.throughput import Throughput, calibrate, learn_load, pick_engine, remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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

    def open(self, kind: PixelKind, level: Callable[[FileKind, bytes], bytes] | None = None) -> Engine:
        """Open the engine, and remember how long that took.

        Args:
            kind: kind of the pixels.
            level: function from the kind of a file and its bytes to those of another level; by default the file itself.

        Returns:
            The engine with the bundle's file for these pixels.
        """
        name = self.engine(kind)
        which = file_kind(name, kind, self.bundle.card.files)
        path = self.bundle.file(which)
        start = time.perf_counter()
        if level is None:
            opened = create(name, path, self.threads, exact=kind == "float")
        else:
            # An engine that still reads the file keeps it open, and on Windows nobody can remove it then.
            with tempfile.TemporaryDirectory(prefix="foveal-", ignore_cleanup_errors=True) as folder:
                changed = Path(folder) / path.name
                changed.write_bytes(level(which, path.read_bytes()))
                opened = create(name, changed, self.threads, exact=kind == "float")
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

    def settled(self) -> dict[PixelKind, tuple[str, int]]:
        """The engine and the tile for each kind of pixels, chosen now if they were not before.

        Returns:
            Name of the engine and side of a tile by kind, for every kind that the bundle has a file for.
        """
        kinds: tuple[PixelKind, ...] = ("float", "uint8")
        return {kind: (self.engine(kind), self.tile(kind)) for kind in kinds if kind in self.bundle.card.files}

    def adopt(self, settled: Mapping[PixelKind, tuple[str, int]]) -> None:
        """Take another machine's choice, so that both make the same pixels.

        Args:
            settled: what `settled` returned there.

        Raises:
            EngineError: an engine that cannot be used here.
        """
        for kind, (name, tile) in settled.items():
            if reason := why_not(name):
                raise EngineError(f"engine {name}: {reason}")
            self._engines[kind], self._tiles[kind] = name, tile

    def _know(self, kind: PixelKind, found: Throughput) -> None:
        self._throughputs[kind] = found
        self._tiles[kind] = found.tile
