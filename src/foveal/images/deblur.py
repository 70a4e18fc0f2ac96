"""A slight blur undone: its width read from the picture's spectrum, then Wiener's filter. NumPy only.

For y = k ∗ x + noise of variance N, with K and Y the Fourier transforms of k and y, and S the spectrum of x,

    x̂ = F⁻¹( conj(K) Y / (|K|² + N / S) ),   S(f) = c / (f² + f₀²)

S is that of photographs, which falls with the square of the frequency (D. L. Ruderman, "Origins of Scaling in Natural
Images", Vision Research 37(23), 1997), with the c of this picture. The more noise, the less is sharpened.

*The width.* A Gaussian of standard deviation σ takes 4π²σ²f² from the logarithm of the spectrum, which is otherwise
nearly a straight line of log f; and the ratio of an edge's gradients after two further Gaussians a < b says how wide it
is, R² = (σ² + b²) / (σ² + a²) for a step (S. Zhuo and T. Sim, "Defocus Map Estimation from a Single Image", Pattern
Recognition 44(9), 2011, section 3). The logarithms of ten bands and of three quantiles of R, and their squares, give σ
by a regression that was fitted to training pictures with noise and JPEG of many strengths (bench/blur_reading.py).
*Provenance*: written from the formulas; `foveal.nn.wiener` is the filter in torch, with N / S one number.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from foveal.images.degradation import luminance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

__all__ = ["LEAST_WIDTH", "gaussian", "stroke", "traces", "width_of", "wiener"]

SIDE = 256  # of a window of the spectrum, in pixels
LEAST_SIDE = 64
PLACES = 4  # windows down and across, at most
BANDS = np.array([0.03, 0.05, 0.08, 0.12, 0.16, 0.20, 0.25, 0.30, 0.36, 0.42, 0.50])  # cycles a pixel
FINE, COARSE = 0.8, 1.6  # a and b, in pixels
QUANTILES = (0.5, 0.75, 0.9)
FLOOR = 0.05  # added to a band's power, in squared levels: half of what rounding makes
LEAST_WIDTH = 0.8  # pixels; sharp training pictures read up to 0.74
# Of the logarithms, of their squares, and a constant.
# fmt: off
WEIGHTS = np.array([
    -0.15728, 1.26945, -0.34254, -0.50393, 0.04931, 0.02299, -0.00546, 0.04647, -0.11579, 0.07849,
    -8.28461, 4.58979, -1.75165,
    0.00277, -0.07286, 0.0538, 0.01558, -0.01309, -0.00782, 0.01703, -0.01146, -0.01108, 0.00106,
    5.55768, -1.52637, 0.12142,
    0.50452,
])
# fmt: on
MARGIN = 0.95  # of the width that was read: too wide a filter draws halos, too narrow a one leaves some blur
TILE, REACH = 512, 64  # sides of what is filtered together, and what lies around it, in pixels
ACROSS = 0.5  # width of a stroke, standard deviation in pixels
TURNS, ROUGHLY = 2, 6.0  # of a filter that leans, and levels of noise that the rough turns are told
COARSEST = 0.01  # f₀, cycles a pixel


def _starts(size: int, side: int) -> NDArray[np.intp]:
    count = min(PLACES, -(-size // side))
    return np.unique(np.linspace(0, size - side, count).astype(np.intp))


def _blurred(y: Plane, sigma: float) -> Plane:
    radius = math.ceil(4 * sigma)
    weights = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for _ in range(2):
        padded = np.pad(y, [(radius, radius), (0, 0)], mode="edge")
        y = np.asarray(np.add.reduce([w * padded[k : k + len(y)] for k, w in enumerate(weights)])).T
    return y


def _edges(y: Plane) -> Plane:
    """R of the strongest edges' middles, (n,)."""
    down, across = (np.asarray(slope) for slope in np.gradient(_blurred(y, FINE)))
    coarse = [np.asarray(slope) for slope in np.gradient(_blurred(y, COARSE))]
    fine = np.hypot(down, across)
    here = fine[1:-1, 1:-1]
    sideways = np.abs(across[1:-1, 1:-1]) >= np.abs(down[1:-1, 1:-1])
    middle = np.where(
        sideways,
        (here >= fine[1:-1, :-2]) & (here >= fine[1:-1, 2:]),
        (here >= fine[:-2, 1:-1]) & (here >= fine[2:, 1:-1]),
    )
    strong = middle & (here > max(2.0, float(np.quantile(here, 0.95))))
    return here[strong] / np.maximum(np.hypot(*coarse)[1:-1, 1:-1][strong], 1e-3)


def traces(pixels: NDArray) -> NDArray[np.float64] | None:
    """What the width of a blur is told by: power of luminance in bands of the frequency, and the sharpness of edges.

    Args:
        pixels: (H, W) or (H, W, C), uint8, uint16 or floats in [0, 1]; of four channels the last is left out.

    Returns:
        Logarithms of the power in squared levels, ascending frequency, and of R's quantiles, (13,); None for a picture
        below 64 pixels.
    """
    side = min(SIDE, *pixels.shape[:2])
    if side < LEAST_SIDE:
        return None
    window = np.outer(np.hanning(side), np.hanning(side))
    power, ratios = np.zeros((side, side // 2 + 1)), []
    for top in _starts(pixels.shape[0], side):
        for left in _starts(pixels.shape[1], side):
            y = luminance(pixels[top : top + side, left : left + side])
            power += np.square(np.abs(np.fft.rfft2((y - y.mean()) * window)))
            ratios.append(_edges(y))
    power /= len(ratios) * np.square(window).sum()
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    bands = [power[(f >= low) & (f < high)].mean() for low, high in pairwise(BANDS)]
    sharp = np.concatenate(ratios)
    edges = np.quantile(sharp, QUANTILES) if len(sharp) else np.ones(len(QUANTILES))
    return np.log(np.concatenate([np.array(bands) + FLOOR, edges]))


def width_of(found: NDArray[np.float64]) -> float:
    """Width of the blur that its traces show.

    Args:
        found: (13,), as `traces` returns them.

    Returns:
        Standard deviation of a Gaussian, pixels, 0 to 3.
    """
    return float(np.clip(np.concatenate([found, np.square(found), [1]]) @ WEIGHTS, 0, 3))


def gaussian(sigma: float) -> Plane:
    """A Gaussian filter.

    Args:
        sigma: standard deviation in pixels, above 0.

    Returns:
        (k, k), odd, sum 1; cut at four standard deviations.
    """
    radius = max(1, math.ceil(4 * sigma))
    row = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * sigma**2))
    kernel = np.outer(row, row)
    return (kernel / kernel.sum()).astype(np.float32)


def stroke(length: float, angle: float) -> Plane:
    """A straight movement.

    Args:
        length: in pixels, above 0.
        angle: to the vertical, degrees, counter-clockwise.

    Returns:
        (k, k), odd, sum 1.
    """
    radius = math.ceil(length / 2 + 2 * ACROSS)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    along, across = x * sine + y * cosine, x * cosine - y * sine
    beyond = np.maximum(np.abs(along) - length / 2, 0)
    kernel = np.exp(-(np.square(across) + np.square(beyond)) / (2 * ACROSS**2))
    return (kernel / kernel.sum()).astype(np.float32)


def _response(kernel: Plane, side: tuple[int, int]) -> NDArray[np.complex128]:
    padded = np.zeros(side)
    padded[: len(kernel), : len(kernel)] = kernel
    return np.fft.rfft2(np.roll(padded, (-(len(kernel) // 2),) * 2, (0, 1)))


def wiener(pixels: NDArray, kernel: Plane, noise: float) -> NDArray:
    """Undo a filter.

    What lies beyond the picture's borders is taken to be its mirror image. The filter of the mirror image is another
    one where a filter leans, so that the picture is first undone roughly, and what the filter makes beyond the borders
    is then computed from it.

    Args:
        pixels: (H, W, C), uint8, uint16 or floats in [0, 1]; every channel is filtered.
        kernel: (k, k), odd, sum 1.
        noise: standard deviation of the noise, in levels of 255, above 0.

    Returns:
        The same shape and dtype.
    """
    top = np.float32(np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0)
    strength = _strength(pixels, kernel)
    seen = _mirrored(pixels, REACH).astype(np.float32) / top
    leans = not np.allclose(kernel, kernel[::-1], atol=1e-4)
    made = _undone(seen, kernel, max(noise, ROUGHLY) if leans else noise, strength)
    for turn in range(TURNS if leans else 0):
        beyond = np.stack([_filtered(made[..., c].clip(0, 1), kernel) for c in range(made.shape[2])], axis=-1)
        beyond[REACH:-REACH, REACH:-REACH] = seen[REACH:-REACH, REACH:-REACH]
        made = _undone(beyond, kernel, noise if turn == TURNS - 1 else max(noise, ROUGHLY), strength)
    made = made.clip(0, 1) * top
    return (np.rint(made) if top > 1 else made).astype(pixels.dtype)


def _undone(seen: Plane, kernel: Plane, noise: float, strength: float) -> Plane:
    """Wiener's filter tile by tile, of a picture with its surroundings, which are left away."""
    height, width = (size - 2 * REACH for size in seen.shape[:2])
    out = np.empty((height, width, seen.shape[2]), np.float32)
    filters: dict[tuple[int, int], NDArray[np.complex128]] = {}
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            part = seen[y : y + TILE + 2 * REACH, x : x + TILE + 2 * REACH]
            side = (part.shape[0], part.shape[1])
            if side not in filters:
                k = _response(kernel, side)
                f = np.square(np.fft.fftfreq(side[0])[:, None]) + np.square(np.fft.rfftfreq(side[1]))
                filters[side] = k.conj() / (np.square(np.abs(k)) + _ratio(f, noise, strength))
            mean = part.mean((0, 1))
            spectra = np.fft.rfft2(part - mean, axes=(0, 1)) * filters[side][..., None]
            made = np.fft.irfft2(spectra, s=side, axes=(0, 1))[REACH:-REACH, REACH:-REACH] + mean
            out[y : y + TILE, x : x + TILE] = made
    return out


def _filtered(plane: Plane, kernel: Plane) -> Plane:
    """What a filter makes of a picture and its mirror images around it, (H, W) to (H + 2 reach, W + 2 reach)."""
    radius = len(kernel) // 2
    whole = _mirrored(plane[..., None], REACH + radius)[..., 0]
    made = np.fft.irfft2(np.fft.rfft2(whole) * _response(kernel, whole.shape), s=whole.shape)
    return made[radius:-radius, radius:-radius].astype(np.float32)


def _ratio(f: NDArray[np.float64], noise: float, strength: float) -> NDArray[np.float64]:
    """N / S of squared frequencies."""
    return noise**2 * (f + COARSEST**2) / strength


def _strength(pixels: NDArray, kernel: Plane) -> float:
    """c, in squared levels, from the two lowest bands, which a blur hardly touches."""
    bands = traces(pixels)
    if bands is None:
        return 1.0
    k = np.square(np.abs(_response(kernel, (SIDE, SIDE))))
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    found = []
    for power, (low, high) in zip(np.exp(bands[:2]), pairwise(BANDS[:3]), strict=True):
        within = (f >= low) & (f < high)
        found.append(power / (k[within] / np.square(f[within])).mean())
    return max(float(np.mean(found)), 1e-3)


def _mirrored(pixels: NDArray, reach: int) -> NDArray:
    """A picture with its mirror images around it, several where it is small."""
    places = []
    for size in pixels.shape[:2]:
        at = np.abs(np.arange(-reach, size + reach)) % max(2 * (size - 1), 1)
        places.append(np.where(at < size, at, 2 * (size - 1) - at))
    return pixels[np.ix_(*places)]
