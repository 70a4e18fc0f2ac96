"""Pairs of low- and high-resolution patches for super-resolution, and of noisy and clean ones for denoising.

A folder of pictures becomes two flat arrays, one of high-resolution pixels and one of the same pictures reduced by
`imresize`, cached beside the folder so that the second run starts at once. A batch is a function of seed and step
only, which makes a resumed training identical to an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from foveal.errors import FovealError
from foveal.images.resize import imresize
from foveal.runtime.machine import cache_folder
from foveal.train.restore.sampling_aug import informative, patch_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["SUFFIXES", "Pairs", "PicturesError", "noisy"]

ARRAYS = ("high", "low", "error", "shapes")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class PicturesError(FovealError, ValueError):
    """A folder without the pictures that are needed."""


def noisy(pictures: NDArray[np.uint8], level: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add Gaussian noise and round to whole levels.

    Args:
        pictures: pictures of any shape.
        level: standard deviation of the noise, in levels of 255; 0 returns the pictures themselves.
        rng: random generator for the noise.

    Returns:
        Pictures of the same shape, clipped to 0 to 255.
    """
    if not level:
        return pictures
    noise = rng.standard_normal(pictures.shape, np.float32)
    return np.rint(np.clip(pictures + np.float32(level) * noise, 0, 255)).astype(np.uint8)


def _pair(path: Path, scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """High resolution, low resolution and the squared luminance error of bicubic, on the low-resolution grid.

    At scale 1 both pictures are the same, and the error is that of bicubic at half the size, which shows where detail
    is.
    """
    with Image.open(path) as picture:
        high = np.asarray(picture.convert("RGB"))
    factor = max(scale, 2)
    high = high[: high.shape[0] // factor * factor, : high.shape[1] // factor * factor]
    small = imresize(high, 1 / factor, dtype=np.float32)
    back = imresize(small, factor, dtype=np.float32)
    error = np.square((high.astype(np.float32) - back).mean(axis=2))
    low = high if scale == 1 else small
    return high, low, error.reshape(low.shape[0], scale, low.shape[1], scale).mean(axis=(1, 3), dtype=np.float32)


@dataclass
class Pairs:
    """Pictures with their reduced versions, and the positions of the patches to draw.

    Args:
        high: all high-resolution pixels concatenated, (n·s², 3) uint8.
        low: all low-resolution pixels concatenated, (n, 3) uint8.
        shapes: rows and columns of each low-resolution picture, (pictures, 2).
        places: picture, row and column of every patch that may be drawn, (places, 3).
        scale: s.
        patch: side of a low-resolution patch.
        taught: teachers' answers to `low`, in the layout of `high`; None without teachers.
        noise: standard deviation of the noise that `batch` adds to the low resolution, in levels of 255.
    """

    high: NDArray[np.uint8]
    low: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    places: NDArray[np.int32]
    scale: int
    patch: int
    taught: NDArray[np.uint8] | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        self._starts = np.concatenate([[0], np.cumsum(self.shapes.prod(axis=1))])

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        scale: int,
        *,
        patch: int = 48,
        fraction: float = 0.5,
        stride: int = 4,
        teach: Callable[[Path, int], NDArray[np.uint8]] | None = None,
        noise: float = 0.0,
    ) -> Pairs:
        """Read every picture below `folder`, or the cache of an earlier call.

        The pixels are cached in `.foveal` in that folder, or in foveal's cache folder if it is not writable, once per
        scale.

        Args:
            folder: folder of pictures; subfolders are searched too.
            scale: s.
            patch: side of a low-resolution patch, in pixels.
            fraction: most informative share of each picture's patches to draw from; 1 draws from all.
            stride: distance between neighbouring patches, in low-resolution pixels.
            teach: function of the cache folder and s that returns teachers' answers to all pictures, which are learnt
                beside the originals, such as `foveal.train.restore.teacher.answers` with its teachers filled in.
            noise: standard deviation of the noise that `batch` adds to the low resolution, in levels of 255.

        Returns:
            The pairs, memory-mapped.

        Raises:
            PicturesError: no picture below `folder`, or none that is large enough.
            TeacherError: a teacher with another scale.
        """
        paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise PicturesError(f"{folder}: no pictures below it; `foveal data {folder}` fetches some")
        stamp = [(str(p.relative_to(folder)), p.stat().st_size) for p in paths]
        key = hashlib.sha256(repr((scale, stamp)).encode()).hexdigest()[:16]
        kept = _place(Path(folder)) / key
        if not kept.exists():
            _write(kept, paths, scale)
        high, low, error, shapes = (np.load(kept / f"{n}.npy", mmap_mode="r") for n in ARRAYS)
        places = _places(error, shapes, patch, fraction, stride)
        if not len(places):
            raise PicturesError(
                f"{folder}: no picture of at least {patch * scale} pixels a side among the {len(paths)} found; "
                "take larger ones, or a smaller patch"
            )
        taught = None if teach is None else teach(kept, scale)
        return cls(high, low, np.asarray(shapes), places, scale, patch, taught, noise)

    def batch(self, size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], ...]:
        """Draw patches, each rotated and flipped at random.

        Args:
            size: B.
            rng: random generator for the choice.

        Returns:
            Low resolution (B, p, p, 3) and high resolution (B, s·p, s·p, 3); with teachers also their answers, in the
            latter shape.
        """
        sources = [(self.low, 1), (self.high, self.scale)]
        if self.taught is not None:
            sources.append((self.taught, self.scale))
        batch = tuple(np.empty((size, s * self.patch, s * self.patch, 3), np.uint8) for _, s in sources)
        for i, (k, y, x) in enumerate(self.places[np.sort(rng.integers(len(self.places), size=size))]):
            rows, columns = self.shapes[k]
            start = self._starts[k]
            turn = int(rng.integers(8))
            for (pixels, s), target in zip(sources, batch, strict=True):
                whole = pixels[start * s * s : (start + rows * columns) * s * s].reshape(rows * s, columns * s, 3)
                part = whole[y * s : (y + self.patch) * s, x * s : (x + self.patch) * s]
                turned = part.transpose(1, 0, 2) if turn & 1 else part
                target[i] = turned[:: -1 if turn & 2 else 1, :: -1 if turn & 4 else 1]
        low, *others = batch
        return noisy(low, self.noise, rng), *others


def _place(folder: Path) -> Path:
    """Folder of the cached pixels: beside the pictures if writable, else in foveal's cache folder."""
    place = folder / ".foveal"
    try:
        place.mkdir(exist_ok=True)
        (place / ".try").touch()
        (place / ".try").unlink()
    except OSError:
        place = cache_folder() / "pairs"
        place.mkdir(parents=True, exist_ok=True)
    return place


def _write(kept: Path, paths: list[Path], scale: int) -> None:
    """Decode and reduce every picture; the folder gets its final name once it is complete."""
    shapes = []
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        part = Path(folder)
        with ExitStack() as stack:
            files = [stack.enter_context((part / n).open("wb")) for n in ARRAYS[:3]]
            pool = stack.enter_context(ThreadPoolExecutor(2))
            # Sixteen at a time to bound memory: a picture takes megabytes, a set can have many thousands.
            for start in range(0, len(paths), 16):
                for high, low, error in pool.map(lambda p: _pair(p, scale), paths[start : start + 16]):
                    shapes.append(low.shape[:2])
                    files[0].write(high.tobytes())
                    files[1].write(low.tobytes())
                    files[2].write(error.tobytes())
        whole = part / "whole"
        whole.mkdir()
        for name, dtype, columns in (("high", np.uint8, (3,)), ("low", np.uint8, (3,)), ("error", np.float32, ())):
            np.save(whole / f"{name}.npy", np.memmap(part / name, dtype, "r").reshape(-1, *columns))
        np.save(whole / "shapes.npy", np.array(shapes, np.int64))
        whole.replace(kept)


def _places(
    error: NDArray[np.float32], shapes: NDArray[np.int64], patch: int, fraction: float, stride: int
) -> NDArray[np.int32]:
    places = [np.empty((0, 3), np.int32)]
    start = 0
    for k, (rows, columns) in enumerate(shapes):
        if min(rows, columns) >= patch:
            scores = patch_scores(error[start : start + rows * columns].reshape(rows, columns), patch, stride=stride)
            best = informative(scores, fraction) * stride
            places.append(np.column_stack([np.full(len(best), k), best]).astype(np.int32))
        start += rows * columns
    return np.concatenate(places)
