"""Small pictures damaged as people's are: JPEG, JPEG twice, JPEG and then reduced, noise, noise and then JPEG.

Each comes with the level that foveal will read in such a picture, which is not always the truth: of two JPEGs on
different grids the file tells the last, and noise that a JPEG has smoothed away cannot be measured. A network that is
told the truth in training and something else in use does worse than one that is told nothing. But such pictures are
few: when they were a fifth, as many of those called quality 90 were worse than that as were not, and honest ones of
quality 90 lost 0.12 dB.

The grid of blocks lies anywhere: encode more than is needed and cut (`border`). All of it is a function of the random
generator alone.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from foveal.images.degradation import jpeg_level

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["KINDS", "Degraded", "add_noise", "degrade", "encode_jpeg"]

SUBSAMPLINGS = (2, 2, 2, 2, 2, 2, 0, 0, 1)  # 4:2:0 mostly, 4:4:4, 4:2:2
NOISE_UNIT = 10.0  # levels of 255 that a noise of 1 stands for
SLIGHT, STRONG = 1.2, 25.0  # standard deviations of noise, levels of 255
STRONGEST_BELOW = 12.0  # the same, of noise that a JPEG lies over


class Degraded(NamedTuple):
    """A damaged picture.

    Args:
        pixels: (H, W, 3).
        jpeg: step of the JPEG table that will be read, as a multiple of quality 50's; 0 for none.
        noise: standard deviation of the noise that will be read, in tens of levels; 0 for none.
        colour: the same of the noise of colour alone; 0 where it is grey.
    """

    pixels: NDArray[np.uint8]
    jpeg: float = 0.0
    noise: float = 0.0
    colour: float = 0.0

    @property
    def level(self) -> tuple[float, float, float]:
        """The three numbers that a network is told."""
        return self.jpeg, self.noise, self.colour


def encode_jpeg(picture: NDArray[np.uint8], quality: int, subsampling: int = 2) -> NDArray[np.uint8]:
    """A picture as it comes back from a JPEG file.

    Args:
        picture: (H, W, 3).
        quality: 1 to 100.
        subsampling: of chroma, in Pillow's words: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.

    Returns:
        (H, W, 3).
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as back:
        return np.asarray(back)


def add_noise(
    picture: NDArray[np.uint8],
    sigma: float,
    rng: np.random.Generator,
    *,
    grey: bool = False,
    blur: float = 0.0,
    dark: float = 0.0,
) -> NDArray[np.uint8]:
    """Gaussian noise, rounded to levels.

    Args:
        picture: (H, W, 3).
        sigma: standard deviation in levels of 255, at mid-grey where `dark` is used.
        rng: where the noise comes from.
        grey: the same for red, green and blue.
        blur: weight of each neighbour in the filter [b, 1 - 2b, b] that noise goes through, in [0, 1/3]; its standard
            deviation is restored.
        dark: how much less there is in the dark, in [0, 1]: 0 for noise that is the same everywhere, 1 for the root of
            the brightness.

    Returns:
        (H, W, 3).
    """
    noise = rng.standard_normal((*picture.shape[:2], 1 if grey else 3), np.float32)
    if blur:
        for axis in (0, 1):
            near = np.pad(noise, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="reflect")
            before, after = (np.take(near, range(i, i + noise.shape[axis]), axis) for i in (0, 2))
            noise = (1 - 2 * blur) * noise + blur * (before + after)
        noise /= (1 - 2 * blur) ** 2 + 2 * blur**2
    if dark:
        noise = noise * np.sqrt(1 - dark + dark * picture.mean(2, keepdims=True) / 128)
    return np.clip(np.rint(picture + sigma * noise), 0, 255).astype(np.uint8)


def _told(sigma: float, rng: np.random.Generator, *, grey: bool, blur: float) -> float:
    """Noise as it will be read: less where it is blurred, for it is looked for at the finest scale; and not exactly."""
    a = blur
    # What is left of the variance that [1, -2, 1] sees along an axis; high and middle frequencies share in the reading.
    left = ((2 * a**2 + 2 * (1 - 4 * a) ** 2 + (6 * a - 2) ** 2) / 6) / ((1 - 2 * a) ** 2 + 2 * a**2)
    share = left**0.5
    return sigma * (1.5 if grey else 1.0) * share * float(np.exp(0.12 * rng.standard_normal())) / NOISE_UNIT


def _quality(rng: np.random.Generator) -> int:
    return int(rng.integers(25, 97))


def _jpeg(low: NDArray[np.uint8], rng: np.random.Generator) -> Degraded:
    quality = _quality(rng)
    return Degraded(encode_jpeg(low, quality, int(rng.choice(SUBSAMPLINGS))), jpeg_level(quality))


def _twice(low: NDArray[np.uint8], rng: np.random.Generator) -> Degraded:
    """Two JPEGs: on one grid, where the coarser table can be read, or shifted, where only the last one can."""
    first, last = int(rng.integers(30, 80)), int(rng.integers(75, 97))
    once = encode_jpeg(low, first, int(rng.choice(SUBSAMPLINGS)))
    subsampling = int(rng.choice(SUBSAMPLINGS))
    if rng.random() < 0.5:
        return Degraded(encode_jpeg(once, last, subsampling), jpeg_level(min(first, last)))
    rows, columns = rng.integers(0, 8, 2)
    moved = np.pad(once, ((rows, 0), (columns, 0), (0, 0)), mode="edge")
    return Degraded(encode_jpeg(moved, last, subsampling)[rows:, columns:], jpeg_level(last))


def _noise(low: NDArray[np.uint8], rng: np.random.Generator, strongest: float = STRONG) -> Degraded:
    sigma = float(np.exp(rng.uniform(np.log(SLIGHT), np.log(strongest))))
    grey = bool(rng.random() < 0.25)
    blur = float(rng.uniform(0.05, 0.2)) if rng.random() < 0.12 else 0.0
    dark = float(rng.random()) if rng.random() < 0.15 else 0.0
    pixels = add_noise(low, sigma, rng, grey=grey, blur=blur, dark=dark)
    told = _told(sigma, rng, grey=grey, blur=blur)
    return Degraded(pixels, 0.0, told, 0.0 if grey else told)


def _noise_then_jpeg(low: NDArray[np.uint8], rng: np.random.Generator) -> Degraded:
    """Of noise before a JPEG little can be read, and often nothing."""
    noisy = _noise(low, rng, STRONGEST_BELOW)
    damaged = _jpeg(noisy.pixels, rng)
    read = float(rng.random()) if rng.random() < 0.3 else 0.0
    return Degraded(damaged.pixels, damaged.jpeg, read * noisy.noise, read * noisy.colour)


def _reduced(high: NDArray[np.uint8], size: int, rng: np.random.Generator) -> Degraded:
    """A JPEG, resized and saved as another: of the first, nothing can be read."""
    side = round(size / rng.uniform(0.5, 1.2))
    picture = Image.fromarray(high).resize((side, side), Image.Resampling.BICUBIC)
    once = encode_jpeg(np.asarray(picture), int(rng.integers(30, 85)), int(rng.choice(SUBSAMPLINGS)))
    again = np.asarray(Image.fromarray(once).resize((size, size), Image.Resampling.BICUBIC))
    last = int(rng.integers(75, 97))
    return Degraded(encode_jpeg(again, last, int(rng.choice(SUBSAMPLINGS))), jpeg_level(last))


# Share of each kind; what is left stays clean.
KINDS: dict[str, tuple[float, Callable[[NDArray[np.uint8], np.random.Generator], Degraded] | None]] = {
    "jpeg": (0.52, _jpeg),
    "noise": (0.32, _noise),
    "noise, jpeg": (0.06, _noise_then_jpeg),
    "jpeg, jpeg": (0.05, _twice),
    "jpeg, reduced, jpeg": (0.02, None),  # made of the large picture
    "clean": (0.03, None),
}


def degrade(low: NDArray[np.uint8], high: NDArray[np.uint8], rng: np.random.Generator) -> Degraded:
    """Damage a small picture at random.

    Args:
        low: clean, (H, H, 3); a side of eight or more pixels above what is needed lets the caller cut anywhere in the
            grid.
        high: the same picture larger, (s·H, s·H, 3).
        rng: where every choice comes from.

    Returns:
        The damaged picture, as large as `low`, and its level.
    """
    names = list(KINDS)
    kind = names[int(rng.choice(len(names), p=[share for share, _ in KINDS.values()]))]
    damage = KINDS[kind][1]
    if damage is not None:
        return damage(low, rng)
    return _reduced(high, len(low), rng) if kind != "clean" else Degraded(low)
