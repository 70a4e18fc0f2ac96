"""Throughput: how fast each engine runs a bundle on this machine, and which of them is the fastest.

A short calibration, done once for each bundle, engine and number of threads and kept in the user's cache folder, finds
the best tile and the seconds per megapixel. What reading and writing files add is learned from the pictures that were
done: no constant fits every disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.engines import (
    AUTO,
    Engine,
    EngineError,
    EngineMemoryError,
    EngineUnsupportedError,
    PixelKind,
    create,
    engine_kind,
    file_kind,
    library_version,
    why_not,
)
from foveal.runtime.machine import cache_folder, cpu_model
from foveal.runtime.tiles import make_grid

if TYPE_CHECKING:
    from foveal.runtime.bundle import Bundle, Card

__all__ = [
    "Cache",
    "Throughput",
    "calibrate",
    "file_seconds",
    "learn_file_seconds",
    "learn_load",
    "pick_engine",
    "remembered",
]

# Sides of tile that are tried, in input pixels.
_TRIED = (128, 256, 384)
_LONGEST = 0.6  # seconds for one run; larger tiles are not tried after that
# Seconds per output megapixel that reading and writing add, until this machine has taught better.
_FILE_SECONDS = {"png": 0.06, "jpeg": 0.01, "webp": 0.15, "tiff": 0.01, "avif": 0.6, "gif": 0.15, "bmp": 0.005}


class Cache:
    """A small JSON file of measurements. Never in the way: what cannot be read is measured again.

    Args:
        path: path of the file; `calibration.json` in the cache folder by default.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "calibration.json"

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def get(self, key: str) -> dict[str, float] | None:
        """What is remembered.

        Args:
            key: see `put`.

        Returns:
            Numbers by name, or None.
        """
        value = self._read().get(key)
        if not isinstance(value, dict) or not all(isinstance(v, int | float) for v in value.values()):
            return None
        return value

    def put(self, key: str, value: dict[str, float]) -> None:
        """Remember something. Another process that reads meanwhile sees the old file or the new one, whole.

        Args:
            key: everything that the numbers depend on.
            value: numbers by name.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            everything = {**self._read(), key: value}
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".calibration-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(everything, file, indent=1)
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError:  # a read-only home is no reason not to upscale
            pass


@dataclass(frozen=True)
class Throughput:
    """How fast a file of a bundle runs in one engine here.

    Args:
        tile: best side of a tile, in input pixels.
        seconds: per megapixel given to the network (margins included), with that tile.
        load: seconds to open the file.
    """

    tile: int
    seconds: float
    load: float

    def cost(self, margin: int) -> float:
        """Seconds per megapixel of a picture, margins paid.

        Args:
            margin: around each tile, in input pixels.

        Returns:
            Seconds per input megapixel.
        """
        return self.seconds * ((self.tile + 2 * margin) / self.tile) ** 2


def _key(bundle: Bundle, engine: str, threads: int, kind: PixelKind) -> str:
    which = file_kind(engine, kind, bundle.card.files)
    file = bundle.card.files.get(which, "")
    identity = bundle.card.sha256.get(file) or hashlib.sha256(bundle.file(which).read_bytes()).hexdigest()
    return (
        f"{cpu_model()} | {bundle.card.name} {identity[:12]} {which} | {engine} {library_version(engine)} | {threads}"
    )


def _shape(card: Card, kind: PixelKind, tile: int) -> tuple[int, ...]:
    side = make_grid(tile, tile, tile, card).side[0]
    return (1, side, side, 3) if kind == "uint8" else (1, 3, side, side)


def _measure(engine: Engine, card: Card, kind: PixelKind) -> tuple[int, float]:
    """Best tile, and its seconds per megapixel given to the network."""
    rng = np.random.default_rng(0)
    best: tuple[float, int, float] | None = None
    for tile in _TRIED:
        shape = _shape(card, kind, tile)
        x = rng.integers(0, 256, shape, np.uint8) if kind == "uint8" else rng.random(shape, np.float32)
        try:
            engine.run(x)  # the first run of a size prepares the engine for it
            times: list[float] = []
            while len(times) < 3 or (sum(times) < 0.1 and len(times) < 9):
                start = time.perf_counter()
                engine.run(x)
                times.append(time.perf_counter() - start)
                if times[-1] > _LONGEST:
                    break
        except EngineMemoryError:
            if best is None:
                raise
            break
        fastest = min(times)  # what else runs on the machine can only add
        per_pixel = fastest / tile**2
        if best is None or per_pixel < best[0]:
            best = (per_pixel, tile, fastest / (x.size / 3e6))
        if fastest > _LONGEST:
            break
    if best is None:  # _TRIED is not empty
        raise EngineError(f"{engine.name}: nothing was measured")
    return best[1], best[2]


def remembered(
    bundle: Bundle, engine: str, threads: int, kind: PixelKind, cache: Cache | None = None
) -> Throughput | None:
    """How fast a bundle runs here, if that was measured before.

    Args:
        bundle: bundle to run.
        engine: name of the engine.
        threads: processor threads.
        kind: kind of the pixels.
        cache: cache to look in; the user's by default.

    Returns:
        The throughput, or None.
    """
    found = (cache or Cache()).get(_key(bundle, engine, threads, kind))
    if found is None or not found.keys() >= {"tile", "seconds", "load"} or min(found.values()) <= 0:
        return None
    return Throughput(int(found["tile"]), found["seconds"], found["load"])


def calibrate(bundle: Bundle, engine: str, threads: int, kind: PixelKind, cache: Cache | None = None) -> Throughput:
    """How fast a bundle runs here: remembered, or measured in about a second.

    Args:
        bundle: bundle to run.
        engine: name of the engine.
        threads: processor threads.
        kind: kind of the pixels.
        cache: cache to write to; the user's by default.

    Returns:
        The throughput.
    """
    cache = cache or Cache()
    if (known := remembered(bundle, engine, threads, kind, cache)) is not None:
        return known
    start = time.perf_counter()
    path = bundle.file(file_kind(engine, kind, bundle.card.files))
    opened = create(engine, path, threads, exact=kind == "float")
    load = max(time.perf_counter() - start, 1e-6)
    tile, seconds = _measure(opened, bundle.card, kind)
    measured = Throughput(tile, seconds, load)
    cache.put(_key(bundle, engine, threads, kind), asdict(measured))
    return measured


def learn_load(bundle: Bundle, engine: str, threads: int, kind: PixelKind, seconds: float) -> None:
    """Remember how long opening an engine really took: a calibration may find its library already loaded.

    Args:
        bundle: bundle that was opened.
        engine: name of the engine.
        threads: processor threads.
        kind: kind of the pixels.
        seconds: time that opening took.
    """
    known = remembered(bundle, engine, threads, kind)
    if known is not None:
        load = (known.load + max(seconds, 1e-6)) / 2
        Cache().put(_key(bundle, engine, threads, kind), asdict(replace(known, load=load)))


def pick_engine(
    wanted: str, bundle: Bundle, threads: int, kind: PixelKind, cache: Cache | None = None
) -> tuple[str, str]:
    """The engine to use.

    Args:
        wanted: name of an engine, or "auto" for the one that runs this bundle fastest here.
        bundle: bundle to run.
        threads: processor threads.
        kind: kind of the pixels.
        cache: cache of the calibrations; the user's by default.

    Returns:
        Name of the engine, and a sentence for the user if one had to be left out ("" otherwise).

    Raises:
        EngineError: the one wanted cannot be had, or none can.
        ValueError: no such engine.
    """
    if wanted != "auto":
        if reason := why_not(wanted):
            raise EngineError(f"engine {wanted}: {reason}")
        return wanted, ""
    suffix = bundle.file("float").suffix
    fitting = [name for name in AUTO if engine_kind(name).reads == suffix]
    names = [name for name in fitting if not why_not(name)]
    if not names:
        usual = "onnxruntime" if "onnxruntime" in fitting else next(iter(fitting), "")
        reason = why_not(usual) if usual else f"none runs {suffix} files"
        raise EngineError(f"no engine for {bundle.card.name}: {reason}")
    if len(names) == 1:
        return names[0], ""
    costs: dict[str, float] = {}
    failed: list[str] = []
    for name in names:
        try:
            costs[name] = calibrate(bundle, name, threads, kind, cache).cost(bundle.card.margin)
        except EngineUnsupportedError:  # no failure: it is for other networks
            continue
        except EngineError as error:
            failed.append(str(error))
    if not costs:
        raise EngineError("no engine runs this bundle: " + "; ".join(failed))
    return min(costs, key=lambda name: costs[name]), "; ".join(failed)


def file_seconds(file_format: str, cache: Cache | None = None) -> float:
    """What reading and writing add, per output megapixel.

    Args:
        file_format: "png", "jpeg", …
        cache: cache to look in; the user's by default.

    Returns:
        Seconds.
    """
    found = (cache or Cache()).get(f"{cpu_model()} | file {file_format}")
    return found.get("seconds", 0.0) if found else _FILE_SECONDS.get(file_format, 0.05)


def learn_file_seconds(file_format: str, seconds: float, cache: Cache | None = None) -> None:
    """Remember what reading and writing a picture added.

    Args:
        file_format: "png", "jpeg", …
        seconds: time per output megapixel.
        cache: cache to write to; the user's by default.
    """
    cache = cache or Cache()
    before = file_seconds(file_format, cache)
    # A busy machine may make one picture a hundred times slower; half of each keeps that from lasting.
    cache.put(f"{cpu_model()} | file {file_format}", {"seconds": (before + min(max(seconds, 0.0), 2.0)) / 2})
