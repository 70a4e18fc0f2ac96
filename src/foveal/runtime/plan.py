"""Plans: which engine, which tiles, how much memory and how many seconds, told before the work starts.

The seconds come from a short run of the bundle on this machine, done once for each bundle, engine and number of threads
and remembered in the user's cache folder. The same run says which engine is fastest here and which size of tile. What
reading and writing add is learned from the pictures that were done: no guess of ours fits every disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.images.fit import encoding_bytes
from foveal.runtime.engines import (
    AUTO,
    Engine,
    EngineError,
    EngineMemoryError,
    EngineUnsupportedError,
    cpu_model,
    create,
    file_kind,
    library_version,
    why_not,
)

if TYPE_CHECKING:
    from foveal.runtime.bundle import Bundle, Card
    from foveal.runtime.tiles import Grid

__all__ = [
    "Cache",
    "Pace",
    "Plan",
    "cache_folder",
    "calibrate",
    "file_seconds",
    "learn_file_seconds",
    "learn_load",
    "make_plan",
    "memory",
    "pick_engine",
    "remembered",
]

# Sides of tile that are tried, in input pixels.
_TRIED = (128, 256, 384)
_LONGEST = 0.6  # seconds for one run; larger tiles are not tried after that
# Seconds per output megapixel that reading and writing add, until this machine has taught better.
_FILE_SECONDS = {"png": 0.06, "jpeg": 0.01, "webp": 0.15, "tiff": 0.01, "avif": 0.6, "gif": 0.15, "bmp": 0.005}
_PROCESS_BYTES = {"native": 60 << 20, "onnxruntime": 130 << 20, "openvino": 260 << 20, "torch": 450 << 20}


def cache_folder() -> Path:
    """Where foveal remembers what it measured.

    Returns:
        `$FOVEAL_CACHE`, else `$XDG_CACHE_HOME/foveal`, else `~/.cache/foveal`. It need not exist.
    """
    if own := os.environ.get("FOVEAL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foveal"


class Cache:
    """A small JSON file of measurements. Never in the way: what cannot be read is measured again.

    Args:
        path: of the file; `calibration.json` in the cache folder by default.
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
class Pace:
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


def _key(bundle: Bundle, engine: str, threads: int, kind: str) -> str:
    kind = file_kind(engine, kind, bundle.card.files)
    file = bundle.card.files.get(kind, "")
    identity = bundle.card.sha256.get(file) or hashlib.sha256(bundle.file(kind).read_bytes()).hexdigest()
    return f"{cpu_model()} | {bundle.card.name} {identity[:12]} {kind} | {engine} {library_version(engine)} | {threads}"


def _shape(card: Card, kind: str, tile: int) -> tuple[int, ...]:
    side = -(-(tile + 2 * card.margin) // card.multiple) * card.multiple
    return (1, side, side, 3) if kind == "uint8" else (1, 3, side, side)


def _measure(engine: Engine, card: Card, kind: str) -> tuple[int, float]:
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


def remembered(bundle: Bundle, engine: str, threads: int, kind: str, cache: Cache | None = None) -> Pace | None:
    """How fast a bundle runs here, if that was measured before.

    Args:
        bundle: that runs.
        engine: name of the engine.
        threads: processor threads.
        kind: "float" or "uint8".
        cache: where it is remembered; the user's by default.

    Returns:
        The pace, or None.
    """
    found = (cache or Cache()).get(_key(bundle, engine, threads, kind))
    if found is None or not found.keys() >= {"tile", "seconds", "load"} or min(found.values()) <= 0:
        return None
    return Pace(int(found["tile"]), found["seconds"], found["load"])


def calibrate(bundle: Bundle, engine: str, threads: int, kind: str, cache: Cache | None = None) -> Pace:
    """How fast a bundle runs here: remembered, or measured in about a second.

    Args:
        bundle: that runs.
        engine: name of the engine.
        threads: processor threads.
        kind: "float" or "uint8".
        cache: where to remember; the user's by default.

    Returns:
        The pace.
    """
    cache = cache or Cache()
    if (known := remembered(bundle, engine, threads, kind, cache)) is not None:
        return known
    start = time.perf_counter()
    path = bundle.file(file_kind(engine, kind, bundle.card.files))
    opened = create(engine, path, threads, exact=kind == "float")
    load = max(time.perf_counter() - start, 1e-6)
    tile, seconds = _measure(opened, bundle.card, kind)
    pace = Pace(tile, seconds, load)
    cache.put(_key(bundle, engine, threads, kind), {"tile": pace.tile, "seconds": pace.seconds, "load": pace.load})
    return pace


def learn_load(bundle: Bundle, engine: str, threads: int, kind: str, seconds: float) -> None:
    """Remember how long opening an engine really took: a calibration may find its library already loaded.

    Args:
        bundle: that was opened.
        engine: name of the engine.
        threads: processor threads.
        kind: "float" or "uint8".
        seconds: it took.
    """
    known = remembered(bundle, engine, threads, kind)
    if known is not None:
        load = (known.load + max(seconds, 1e-6)) / 2
        value = {"tile": known.tile, "seconds": known.seconds, "load": load}
        Cache().put(_key(bundle, engine, threads, kind), value)


def pick_engine(wanted: str, bundle: Bundle, threads: int, kind: str, cache: Cache | None = None) -> tuple[str, str]:
    """The engine to use.

    Args:
        wanted: name of an engine, or "auto" for the one that runs this bundle fastest here.
        bundle: that will run.
        threads: processor threads.
        kind: "float" or "uint8".
        cache: of the calibration; the user's by default.

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
    names = [name for name in AUTO if not why_not(name)]
    if not names:
        raise EngineError(f"no engine: {why_not('onnxruntime')}")
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


def memory(grid: Grid, card: Card, engine: str, pixel_bytes: int, *, whole: bool) -> int:
    """An estimate of the memory that a picture takes, the process included.

    Args:
        grid: of the picture.
        card: of the bundle.
        engine: name of the engine.
        pixel_bytes: bytes of one pixel of the picture.
        whole: the result is kept in memory, not written away band by band.

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
    return int(_PROCESS_BYTES.get(engine, 0) + source + result + tiles * channels * 4 * 3)


@dataclass(frozen=True)
class Plan:
    """What will be done to one picture.

    Args:
        bundle: name of the bundle.
        engine: name of the engine.
        threads: processor threads.
        scale: output side over input side.
        width: of the picture, in pixels.
        height: of the picture.
        frames: 1, or those of an animation.
        tile: (width, height) of a tile, in input pixels.
        tiles: of one frame.
        batch: tiles run together.
        margin: pixels of surroundings that every tile is given.
        memory: bytes, estimated.
        seconds: estimated.
        start: those of the seconds that opening the engine takes, once for many pictures.
        notes: sentences the user should read.
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
    pace: Pace,
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
        bundle: that will run.
        engine: name of the engine.
        pace: of the bundle in it.
        grid: of the picture.
        threads: processor threads.
        pixel_bytes: bytes of one pixel of the picture.
        frames: of an animation.
        file_format: that the result is written in; "" if it stays in memory.
        cache: where the seconds of reading and writing are remembered.
        notes: sentences the user should read.

    Returns:
        The plan.
    """
    seconds = pace.load + pace.seconds * grid.pixels * frames / 1e6
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
        start=pace.load,
        notes=notes,
    )


def file_seconds(file_format: str, cache: Cache | None = None) -> float:
    """What reading and writing add, per output megapixel.

    Args:
        file_format: "png", "jpeg", …
        cache: where it is remembered.

    Returns:
        Seconds.
    """
    found = (cache or Cache()).get(f"{cpu_model()} | file {file_format}")
    return found.get("seconds", 0.0) if found else _FILE_SECONDS.get(file_format, 0.05)


def learn_file_seconds(file_format: str, seconds: float, cache: Cache | None = None) -> None:
    """Remember what reading and writing a picture added.

    Args:
        file_format: "png", "jpeg", …
        seconds: per output megapixel.
        cache: where to remember it.
    """
    cache = cache or Cache()
    before = file_seconds(file_format, cache)
    # A busy machine may make one picture a hundred times slower; half of each keeps that from lasting.
    cache.put(f"{cpu_model()} | file {file_format}", {"seconds": (before + min(max(seconds, 0.0), 2.0)) / 2})
