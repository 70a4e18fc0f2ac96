"""A rolling shutter undone for a camera that moves: rows are put where the middle row's moment would show them.

Row v of H is read at the time t(v) = (v / (H - 1) - 1/2) · read, in frames from the middle row's time. When the picture
moves by (down, across) pixels a frame,

    seen(v, u) = x(v - down · t(v), u - across · t(v)),
    x(v, u) = seen(w, u + across · t(w))   with   w = v + down · t(w)

*The movement* of two neighbouring frames is where their phase correlation peaks (C. D. Kuglin and D. C. Hines, "The
Phase Correlation Image Alignment Method", 1975): c = F⁻¹(A* B / |A* B|), its peak refined by a parabola. Both frames
are bent alike, so it needs no undoing. *Differs from* learned ways such as SelfDRSC, which follow every object: one
movement for the whole frame, that of the camera. *Provenance*: written from the formulas; NumPy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.images.degradation import luminance

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEAST_PEAK", "movement", "unrolled"]

SIDE = 360  # pixels of the shorter side at which frames are compared
LEAST_PEAK = 0.1  # of the correlation; frames of different scenes reach half of it


def _small(pixels: NDArray, step: int) -> NDArray[np.float64]:
    """Luminance, means of step×step pixels, faded to the borders."""
    y = luminance(pixels)
    rows, columns = y.shape[0] // step, y.shape[1] // step
    y = y[: rows * step, : columns * step].reshape(rows, step, columns, step).mean((1, 3))
    return (y - y.mean()) * np.outer(np.hanning(rows), np.hanning(columns))


def _top(low: float, middle: float, high: float) -> float:
    """Where a parabola through three values peaks, from the middle one."""
    bend = low - 2 * middle + high
    return 0.0 if bend >= 0 else float(np.clip((low - high) / (2 * bend), -0.5, 0.5))


def movement(first: NDArray, second: NDArray) -> tuple[float, float, float]:
    """How a picture moved between two frames.

    Args:
        first: (H, W, C), uint8, uint16 or floats in [0, 1].
        second: the frame after it, of the same size.

    Returns:
        Pixels down, pixels to the right, and the height of the peak, 0 to 1; below `LEAST_PEAK` there is no common
        movement.

    Raises:
        ValueError: frames of different sizes.
    """
    if first.shape[:2] != second.shape[:2]:
        raise ValueError(
            f"frames must be of one size, got {first.shape[1]}×{first.shape[0]} and {second.shape[1]}×"
            f"{second.shape[0]}; leave out those of another size"
        )
    step = max(1, round(min(first.shape[:2]) / SIDE))
    a, b = (np.fft.rfft2(_small(one, step)) for one in (first, second))
    cross = a.conj() * b
    size = np.abs(cross)
    if not size.any():
        return 0.0, 0.0, 0.0
    shape = (first.shape[0] // step, first.shape[1] // step)
    f = np.square(np.fft.fftfreq(shape[0])[:, None]) + np.square(np.fft.rfftfreq(shape[1]))
    smooth = np.exp(-f / (2 * 0.15**2))  # the finest frequencies hold noise
    peaks = np.fft.irfft2(smooth * cross / np.maximum(size, 1e-9 * size.max()), s=shape) / smooth.mean()
    y, x = np.unravel_index(int(peaks.argmax()), shape)
    down = y + _top(peaks[y - 1, x], peaks[y, x], peaks[(y + 1) % shape[0], x])
    across = x + _top(peaks[y, x - 1], peaks[y, x], peaks[y, (x + 1) % shape[1]])
    down, across = (at - n if at > n / 2 else at for at, n in zip((down, across), shape, strict=True))
    return float(down * step), float(across * step), float(peaks[y, x])


def _cubic(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of four neighbours, (n, 4), for places between the middle two (R. G. Keys, 1981, a = -1/2)."""
    t = part[:, None]
    weights: NDArray[np.float64] = np.concatenate(
        [
            -0.5 * t + t**2 - 0.5 * t**3, 1 - 2.5 * t**2 + 1.5 * t**3, 0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        ],
        axis=1,
    )  # fmt: skip
    return weights


def unrolled(pixels: NDArray, *, down: float, across: float, read: float) -> NDArray:
    """A frame as its middle row's moment would show it.

    Args:
        pixels: (H, W, C), uint8, uint16 or floats in [0, 1].
        down: movement of the picture, pixels a frame.
        across: the same to the right.
        read: share of the time between frames in which the rows are read, -1 to 1; negative from bottom to top.

    Returns:
        The same shape and dtype; what comes from beyond the borders repeats them.

    Raises:
        ValueError: a share beyond its range.
    """
    if not -1 <= read <= 1:
        raise ValueError(f"read must be a share from -1 to 1 of the time between frames, got {read:g}")
    height, width = pixels.shape[:2]
    if height < 2 or not read or not (down or across):
        return pixels.copy()
    slope = down * read / (height - 1)
    if abs(slope) >= 0.5:
        raise ValueError(
            f"{down:g} pixels a frame are too many for {height} rows; cut the film where its scenes change"
        )
    v = np.arange(height)
    rows = np.clip((v - down * read / 2) / (1 - slope), 0, height - 1)
    shifts = across * read * (rows / (height - 1) - 0.5)
    top = pixels.dtype.kind == "u" and np.iinfo(pixels.dtype).max
    out = np.empty_like(pixels)
    first = np.floor(rows).astype(np.intp)
    by_row = _cubic(rows - first)
    whole = np.floor(shifts).astype(np.intp)
    by_column = _cubic(shifts - whole)
    columns = np.arange(width)
    for i in range(height):
        seen = pixels[np.clip(first[i] + np.arange(-1, 3), 0, height - 1)].astype(np.float64)  # (4, W, C)
        line = np.tensordot(by_row[i], seen, 1)
        taps = np.clip(columns + whole[i] + np.arange(-1, 3)[:, None], 0, width - 1)  # (4, W)
        made = np.einsum("k,kwc->wc", by_column[i], line[taps])
        out[i] = np.clip(np.rint(made), 0, top) if top else made
    return out
