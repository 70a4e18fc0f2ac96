"""What a picture has been through: JPEG, and noise, read from its file or from its pixels. NumPy only.

*JPEG.* A file states its quantisation tables. Pixels that were a JPEG once, cut or not, still show it: on the grid of
its 8×8 blocks, and on no other, the coefficients of their cosine transform are multiples of the table's steps
(Z. Fan, R. de Queiroz, "Identification of Bitmap Compression History", IEEE TIP 12(2), 2003, who look at one grid and
maximise a likelihood). Here the grid is the one of 64 with the most coefficients near 0, and the quality the one with
the most evidence

    z = Σ cos(2π c / step) / √(n/2)    over the n coefficients c beyond 0.6 steps

whose terms are 1 for multiples, and have no mean otherwise: clean pictures reach 7, JPEGs of quality 95 stand at 19 and
more (Set5, Set14, 20 of BSD100, reduced four times). In a JPEG that was one before, on the same grid, coefficients
still gather at multiples of the coarser first table.

*Noise* is alike all over a picture and white; what a picture shows at the finest scale is neither. In colour, the
quietest places of R-G and B-G have none of a clean picture's detail, at their highest frequencies. In luminance they
do, and a logistic regression on quantiles of high and middle frequencies tells the two apart; it was fitted to training
pictures (bench/noise_reading.py).

Noise below a JPEG of middling quality, and a JPEG that was resized, cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foveal.images.jpeg_level import (
    BLOCK,
    LOW,
    LUMINANCE_TABLE,
    jpeg_file_level,
    jpeg_level,
    jpeg_quality,
    jpeg_table,
    table_level,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LUMINANCE_TABLE",
    "Degradation",
    "examine",
    "find_jpeg",
    "jpeg_file_level",
    "jpeg_level",
    "jpeg_quality",
    "jpeg_table",
    "luminance",
    "noise",
    "noise_features",
    "table_level",
]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SLIGHT_JPEG = 0.1  # quality 95: from there on, the network for clean pictures is as good
FINEST = 96  # qualities above leave steps of 1, which everything is a multiple of
LEAST_SIDE = 3 * BLOCK  # below, there are too few blocks
REGION, REGIONS = 10, 4  # blocks on a side, and how many, that a large picture is judged by
EVIDENCE = 12.0  # clean pictures reach 7, pictures of quality 95 begin at 19
COARSER, COARSER_EVIDENCE = 0.4, 22.0  # share of multiples, and evidence, for a first table below the last
PLACES = 4000  # blocks at which noise is looked for, at most
QUANTILES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75)
COLOUR_SHARE = 0.85  # of the noise of one colour in the quietest twentieth of R-G's blocks
LEAST_NOISE = 2.5  # levels; clean pictures read up to 2.3
# Weights of log(feature + 0.3), and a constant last: whether luminance is noisy, and the logarithm of how much.
# fmt: off
IS_NOISY = np.array(
    [6.137, 3.157, 2.686, 0.420, -0.687, -2.080, -3.569, -1.547, -0.225, -0.877, -0.667, 1.221, -2.227]
)
HOW_NOISY = np.array(
    [0.918, -0.206, 0.684, -0.144, 0.059, -0.033, 0.317, -0.003, -0.175, -0.380, 0.013, 0.002, 0.999]
)
# fmt: on


@dataclass(frozen=True)
class Degradation:
    """What a picture has been through.

    Args:
        jpeg: step of the JPEG's luminance table as a multiple of quality 50's; 0 for none.
        noise: standard deviation of the noise of each colour, in levels of 255; of grey noise, that of colour noise
            whose luminance is as noisy.
        colour: the same, of the noise of colour alone; 0 where the noise is grey.
        seen: "file" where the file states the table, "pixels" where they show it, "" for no JPEG.
        grid: row and column of the first whole block; (0, 0) unless the picture was cut from a JPEG.
    """

    jpeg: float = 0.0
    noise: float = 0.0
    colour: float = 0.0
    seen: str = ""
    grid: tuple[int, int] = (0, 0)

    @property
    def quality(self) -> int | None:
        """Quality of the JPEG, 1 to 100; None for none."""
        return round(jpeg_quality(self.jpeg)) if self.seen else None

    @property
    def slight(self) -> bool:
        """Whether there is so little that a network for clean pictures is as good."""
        return self.jpeg <= SLIGHT_JPEG + 1e-6 and self.noise < LEAST_NOISE


def _cosines() -> NDArray[np.float32]:
    """The orthonormal cosine transform of eight numbers, (8, 8)."""
    i = np.arange(BLOCK)
    rows = np.cos(np.pi * (2 * i[None] + 1) * i[:, None] / (2 * BLOCK)) / 2
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


COSINES = _cosines()
STEPS = np.stack([jpeg_table(q)[LOW[:, 0], LOW[:, 1]] for q in range(1, FINEST + 1)])  # (qualities, coefficients)


def _colours(pixels: NDArray) -> NDArray:
    """Any picture as (H, W, C), C 1 or 3: alpha left away."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels[..., : 1 if pixels.shape[2] < 3 else 3]


def _levels(pixels: NDArray) -> NDArray[np.float32]:
    """Values in levels of 255."""
    unit = 1.0 if pixels.dtype == np.uint8 else 257.0 if pixels.dtype == np.uint16 else 1 / 255
    return pixels.astype(np.float32) / np.float32(unit)


def _luma(pixels: NDArray) -> NDArray[np.float32]:
    """Luminance of (H, W, C), in levels."""
    levels = _levels(pixels)
    return levels[..., 0] if levels.shape[2] == 1 else levels @ LUMA


def luminance(pixels: NDArray) -> NDArray[np.float32]:
    """Luminance of any picture.

    Args:
        pixels: (H, W) or (H, W, C), uint8, uint16 or floats in [0, 1]; alpha takes no part.

    Returns:
        (H, W), in levels of 255.
    """
    return _luma(_colours(pixels))


def _regions(pixels: NDArray) -> list[NDArray[np.float32]]:
    """Luminance of parts that begin on multiples of 8: of a large picture, a few in which there is something to see."""
    side = BLOCK * REGION + BLOCK - 1
    height, width = pixels.shape[:2]
    if height * width <= REGIONS * side**2:
        return [_luma(pixels)]
    side_y, side_x = min(side, height), min(side, width)
    starts = [
        (int((height - side_y) * i / 4) // BLOCK * BLOCK, int((width - side_x) * j / 4) // BLOCK * BLOCK)
        for i in range(5)
        for j in range(5)
    ]
    parts = [_luma(pixels[top : top + side_y, left : left + side_x]) for top, left in dict.fromkeys(starts)]
    # Neither sky, which holds nothing, nor what is clipped.
    worth = [float(np.abs(np.diff(part, axis=1)).mean() * ((part > 2) & (part < 253)).mean()) for part in parts]
    return [parts[k] for k in np.argsort(worth)[::-1][:REGIONS]]


def _blocks(y: NDArray[np.float32]) -> NDArray[np.floating]:
    """Coefficients of the blocks of every grid, (64, n, 8, 8); n is the same for all, so some are left out."""
    rows, columns = ((size - BLOCK + 1) // BLOCK for size in y.shape)
    # Down, then across: neighbouring grids share what is summed down.
    tall = np.lib.stride_tricks.sliding_window_view(y - 128, BLOCK, 0)[: rows * BLOCK] @ COSINES.T  # (R, W, 8)
    wide = np.lib.stride_tricks.sliding_window_view(tall, BLOCK, 1)[:, : columns * BLOCK]
    both = np.ascontiguousarray(wide).reshape(-1, BLOCK) @ COSINES.T
    grids = both.reshape(rows, BLOCK, columns, BLOCK, BLOCK, BLOCK).transpose(1, 3, 0, 2, 4, 5)
    return grids.reshape(BLOCK**2, rows * columns, BLOCK, BLOCK)


def _evidence(
    low: NDArray[np.floating], steps: NDArray[np.float32], beyond: float, within: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each quality, how much coefficients (n, K) look like multiples of its steps: evidence, and mean cosine."""
    ratio = low[None] / steps[:, None]
    counted = np.abs(ratio) > beyond
    if within is not None:
        counted &= within[:, None]
    number = np.maximum(counted.sum((1, 2)), 1)
    total = (np.cos(2 * np.pi * ratio) * counted).sum((1, 2), dtype=np.float64)
    return total / np.sqrt(number / 2), total / number


def find_jpeg(pixels: NDArray) -> Degradation:
    """Whether pixels were a JPEG once, of which quality, and where its blocks lie.

    Args:
        pixels: (H, W) or (H, W, C), uint8, uint16 or floats in [0, 1].

    Returns:
        `jpeg`, `seen` and `grid`; `seen` is "" where nothing shows it.
    """
    pixels = _colours(pixels)
    if min(pixels.shape[:2]) < LEAST_SIDE:
        return Degradation()
    blocks = np.concatenate([_blocks(part) for part in _regions(pixels)], axis=1)
    grid = int((np.abs(blocks[:, :, 2:, 2:]) < 0.7).mean((1, 2, 3)).argmax())
    low = blocks[grid][:, LOW[:, 0], LOW[:, 1]]
    evidence, _ = _evidence(low, STEPS, 0.6)
    best = int(evidence.argmax())
    if evidence[best] < EVIDENCE:
        return Degradation()
    # A coarser table, of which this is a divisor, explains as much.
    level = _first_level(low, best + 1) or jpeg_level(best + 1)
    return Degradation(level, seen="pixels", grid=divmod(grid, BLOCK))


def _first_level(low: NDArray[np.floating], last: int) -> float | None:
    """Level of a JPEG that was saved again at a finer quality, from coefficients on its grid; None for none."""
    coarser = slice(0, max(last - BLOCK, 0))
    if not len(STEPS[coarser]):
        return None
    within = STEPS[coarser] >= 2 * STEPS[min(last, FINEST) - 1]
    evidence, share = _evidence(low, STEPS[coarser], 0.75, within)
    evidence = np.where(share >= COARSER, evidence, 0)
    best = int(evidence.argmax())
    return jpeg_level(best + 1) if evidence[best] >= COARSER_EVIDENCE else None


def _first_of_file(pixels: NDArray, level: float) -> float:
    """Level of a JPEG file, or the coarser one of a JPEG that it was before, on the same grid."""
    if min(pixels.shape[:2]) < LEAST_SIDE:
        return level
    found = []
    for part in _regions(pixels):
        rows, columns = (size // BLOCK for size in part.shape)
        blocks = part[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
        found.append(COSINES @ (blocks.reshape(-1, BLOCK, BLOCK) - 128) @ COSINES.T)
    low = np.concatenate(found)[:, LOW[:, 0], LOW[:, 1]]
    last = round(jpeg_quality(level))
    return max(_first_level(low, min(max(last, 1), 100)) or 0.0, level)


def noise_features(pixels: NDArray) -> tuple[NDArray[np.float64], float] | None:
    """What noise is told by.

    Args:
        pixels: (H, W) or (H, W, C), uint8, uint16 or floats in [0, 1].

    Returns:
        Quantiles, over the picture's blocks, of the strength of high and of middle frequencies of luminance, (12,); the
        strength of high frequencies of R-G or B-G in the quietest blocks, 0 for grey pictures. None for a picture that
        is too small.
    """
    pixels = _colours(pixels)
    height, width, colours = pixels.shape
    if min(height, width) < 2 * BLOCK:
        return None
    stride = max(BLOCK // 2, int(np.ceil((height * width / PLACES) ** 0.5)))
    places = np.lib.stride_tricks.sliding_window_view(pixels, (BLOCK, BLOCK), (0, 1))[::stride, ::stride]
    levels = _levels(places.reshape(-1, colours, BLOCK, BLOCK))
    if colours == 1:
        windows = [levels[:, 0]]
    else:
        red, green, blue = levels.transpose(1, 0, 2, 3)
        windows = [LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue, red - green, blue - green]
    # Where a picture is clipped there is no noise.
    inside = (windows[0].min((1, 2)) > 2) & (windows[0].max((1, 2)) < 253)
    if inside.sum() < 20:
        inside[:] = True
    both = np.kron(COSINES[2:], COSINES[2:]).T  # down and across at once
    shape = (-1, BLOCK - 2, BLOCK - 2)
    energy = [np.square(w[inside].reshape(-1, BLOCK**2) @ both).reshape(shape) for w in windows]
    high, middle = (np.sqrt(energy[0][:, s, s].mean((1, 2))) for s in (slice(3, None), slice(0, 3)))
    colour = [np.quantile(np.sqrt(e[:, 3:, 3:].mean((1, 2))), 0.05) for e in energy[1:]]
    return np.concatenate([np.quantile(high, QUANTILES), np.quantile(middle, QUANTILES)]), float(min(colour, default=0))


def noise(pixels: NDArray) -> tuple[float, float]:
    """Standard deviation of a picture's noise, and of that of its colour alone.

    Args:
        pixels: (H, W) or (H, W, C), uint8, uint16 or floats in [0, 1].

    Returns:
        In levels of 255, of each colour; of noise that is grey, what colour noise would have that is as strong in
        luminance, and 0 for that of colour. 0 where there is none, or none that can be told from detail.
    """
    found = noise_features(pixels)
    if found is None:
        return 0.0, 0.0
    features, colour = found
    logs = np.append(np.log(features + 0.3), 1)
    of_luma = float(np.exp(logs @ HOW_NOISY)) if logs @ IS_NOISY > 0 else 0.0
    of_colour = colour / COLOUR_SHARE
    if of_colour < LEAST_NOISE:
        of_colour = 0.0
    return max(of_colour, of_luma if of_luma >= LEAST_NOISE else 0.0), of_colour


def examine(pixels: NDArray, *, file_level: float | None = None) -> Degradation:
    """What a picture has been through.

    Args:
        pixels: (H, W) or (H, W, C), uint8, uint16 or floats in [0, 1].
        file_level: of the JPEG file that it was read from, by `jpeg_file_level`; None for another file.

    Returns:
        JPEG and noise.
    """
    if file_level is None:
        found = find_jpeg(pixels)
    else:
        found = Degradation(_first_of_file(_colours(pixels), file_level), seen="file")
    return Degradation(found.jpeg, *noise(pixels), found.seen, found.grid)
