"""Quality of a fused picture against the two it was made from; there is no right answer to compare with. NumPy only.

*Sources*: C. S. Xydeas and V. Petrović, "Objective Image Fusion Performance Measure", Electronics Letters 36(4), 2000:
with strength g and direction α of each pixel's edge by Sobel's filters, sources A and B and the fused picture F,

    G = min(g_A, g_F) / max(g_A, g_F),   A = | |α_A - α_F| - π/2 | / (π/2)
    Q_AF = Γg / (1 + exp(κg (G - σg))) · Γα / (1 + exp(κα (A - σα)))
    Q_AB/F = Σ (Q_AF g_A + Q_BF g_B) / Σ (g_A + g_B)

Γg = 0.9994, κg = -15, σg = 0.5, Γα = 0.9879, κα = -22, σα = 0.8: equal pictures reach 0.975. Z. Wang, E. P. Simoncelli
and A. C. Bovik, "Multiscale Structural Similarity for Image Quality Assessment", Asilomar 2003: SSIM's contrast and
structure at five scales and its luminance at the coarsest, multiplied with exponents.

Pictures are in 0 to 255; colours count by their luminance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.measure.quality import luma

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float64]

__all__ = ["entropy", "ms_ssim", "mutual_information", "q_abf", "scores"]

STRENGTH, DIRECTION = (0.9994, -15, 0.5), (0.9879, -22, 0.8)  # Γ, κ and σ
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _planes(*pictures: NDArray) -> list[Plane]:
    made = [luma(picture) for picture in pictures]
    for other in made[1:]:
        if other.shape != made[0].shape:
            sizes = " and ".join(f"{x.shape[1]}×{x.shape[0]}" for x in made)
            raise ValueError(f"pictures must be of one size, got {sizes}; resize them first")
    return made


def _edges(x: Plane) -> tuple[Plane, Plane]:
    """Strength and direction in [-π/2, π/2] of each pixel that has all its neighbours, (H - 2, W - 2)."""
    columns = x[:-2] + 2 * x[1:-1] + x[2:]
    rows = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    across, down = columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2]
    flat = across == 0
    return np.hypot(across, down), np.where(flat, np.pi / 2, np.arctan(down / np.where(flat, 1, across)))


def _preserved(source: tuple[Plane, Plane], fused: tuple[Plane, Plane]) -> Plane:
    """Q_AF of each pixel; 0 where only one of the two has an edge."""
    (g, alpha), (g_fused, alpha_fused) = source, fused
    larger = np.maximum(g, g_fused)
    shares = np.minimum(g, g_fused) / np.where(larger == 0, 1, larger), abs(abs(alpha - alpha_fused) * 2 / np.pi - 1)
    made = [
        top / (1 + np.exp(slope * (x - at))) for x, (top, slope, at) in zip(shares, (STRENGTH, DIRECTION), strict=True)
    ]
    return made[0] * made[1]


def q_abf(fused: NDArray, first: NDArray, second: NDArray) -> float:
    """Share of the sources' edges that the fused picture keeps, Q_AB/F.

    Args:
        fused: (H, W) or (H, W, 3).
        first: one source, of the same size.
        second: the other.

    Returns:
        0 to 0.975; NaN if neither source has an edge.

    Raises:
        ValueError: different sizes, or less than 3×3 pixels.
    """
    planes = _planes(fused, first, second)
    if min(planes[0].shape) < 3:
        raise ValueError(f"edges need 3×3 pixels, got {planes[0].shape[1]}×{planes[0].shape[0]}; take a larger picture")
    ours, *sources = (_edges(x) for x in planes)
    weight = sum(float(g.sum()) for g, _ in sources)
    kept = sum(float((_preserved(source, ours) * source[0]).sum()) for source in sources)
    return kept / weight if weight else float("nan")


def _blurred(x: Plane) -> Plane:
    """Weighted mean under SSIM's window wherever it lies inside."""
    weights = np.exp(-np.square(np.arange(WINDOW) - WINDOW // 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for _ in range(2):
        x = np.sum([w * x[k : len(x) - WINDOW + 1 + k] for k, w in enumerate(weights)], axis=0).T
    return x


def ms_ssim(a: NDArray, b: NDArray) -> float:
    """Structural similarity at several scales.

    Where the coarsest scales are smaller than the window of 11×11, the scales that fit share the exponents.

    Args:
        a: (H, W) or (H, W, 3).
        b: another picture of the same size.

    Returns:
        0 to 1, which only equal pictures reach.

    Raises:
        ValueError: different sizes, or less than 11×11 pixels.
    """
    x, y = _planes(a, b)
    if min(x.shape) < WINDOW:
        raise ValueError(
            f"MS-SSIM needs {WINDOW}×{WINDOW} pixels, got {x.shape[1]}×{x.shape[0]}; take a larger picture"
        )
    levels = min(len(EXPONENTS), int(np.log2(min(x.shape) // WINDOW)) + 1)
    exponents = np.array(EXPONENTS[:levels]) / sum(EXPONENTS[:levels])
    out = 1.0
    for level, exponent in enumerate(exponents):
        mean_x, mean_y = _blurred(x), _blurred(y)
        spread = _blurred(x * x) - mean_x**2 + _blurred(y * y) - mean_y**2
        similar = (2 * (_blurred(x * y) - mean_x * mean_y) + C2) / (spread + C2)
        if level == levels - 1:
            similar = similar * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
        out *= max(float(similar.mean()), 0.0) ** exponent
        x, y = (_halved(plane) for plane in (x, y))
    return float(out)


def _halved(x: Plane) -> Plane:
    """Means of 2×2 pixels; an odd last row or column is left out."""
    x = x[: len(x) // 2 * 2, : x.shape[1] // 2 * 2]
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def _bits(counts: NDArray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _levels(x: Plane) -> NDArray[np.intp]:
    return np.rint(x).clip(0, 255).astype(np.intp).ravel()


def entropy(picture: NDArray) -> float:
    """Entropy of the histogram of 256 levels.

    Args:
        picture: (H, W) or (H, W, 3).

    Returns:
        Bits a pixel, 0 to 8.
    """
    return _bits(np.bincount(_levels(luma(picture)), minlength=256))


def mutual_information(a: NDArray, b: NDArray) -> float:
    """Information that the levels of one picture's pixels give about those of another's.

    Args:
        a: (H, W) or (H, W, 3).
        b: another picture of the same size.

    Returns:
        Bits a pixel; the entropy for equal pictures, 0 if one is flat.

    Raises:
        ValueError: different sizes.
    """
    x, y = (_levels(plane) for plane in _planes(a, b))
    joint = np.bincount(256 * x + y, minlength=256 * 256)
    table = joint.reshape(256, 256)
    return _bits(table.sum(1)) + _bits(table.sum(0)) - _bits(joint)


def scores(fused: NDArray, first: NDArray, second: NDArray) -> dict[str, float]:
    """All measures of a fused picture.

    Args:
        fused: (H, W) or (H, W, 3).
        first: one source, of the same size.
        second: the other.

    Returns:
        `q_abf`; `ms_ssim`, mean over the two sources; `entropy`; `mutual_information`, sum over the two.

    Raises:
        ValueError: different sizes, or less than 11×11 pixels.
    """
    sources = (first, second)
    return {
        "q_abf": q_abf(fused, first, second),
        "ms_ssim": sum(ms_ssim(fused, source) for source in sources) / 2,
        "entropy": entropy(fused),
        "mutual_information": sum(mutual_information(fused, source) for source in sources),
    }
