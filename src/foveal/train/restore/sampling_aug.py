"""SamplingAug: train on the patches that bicubic interpolation gets wrong.

*Source*: S. Wang et al., "SamplingAug: On the Importance of Patch Sampling Augmentation for Single Image
Super-Resolution", BMVC 2021 (arXiv:2111.15185), sections 3.1 and 3.2. The information of a patch is the squared
error e, (H, W), that linear upsampling makes in it; for patches of p×p pixels at (y, x)

    score(y, x) = Σ e[y : y + p, x : x + p] = S[y + p, x + p] - S[y, x + p] - S[y + p, x] + S[y, x]

where S, (H + 1, W + 1), is the integral image of e, so one cumulative sum serves every position. Training draws from
the most informative fraction.

*Differs from the paper*: the fraction is taken within each picture, so that noisy pictures do not dominate.

*Provenance*: written from the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["informative", "patch_scores"]


def patch_scores(error: NDArray, patch: int, *, stride: int = 1) -> NDArray[np.float64]:
    """Sum of `error` over every patch, by one integral image.

    Args:
        error: squared error of the upsampled picture, (H, W).
        patch: side of the square patch, in pixels of `error`.
        stride: distance between neighbouring patches.

    Returns:
        Scores, ((H - patch) // stride + 1, (W - patch) // stride + 1).

    Raises:
        ValueError: a patch or stride below 1, or a picture smaller than the patch.
    """
    if patch < 1 or stride < 1:
        raise ValueError(f"patch and stride must be at least 1, got {patch} and {stride}")
    if min(error.shape) < patch:
        raise ValueError(f"patch of {patch} does not fit a picture of {error.shape[0]}×{error.shape[1]} pixels")
    integral = np.zeros((error.shape[0] + 1, error.shape[1] + 1))
    np.cumsum(np.cumsum(error, axis=0, dtype=np.float64), axis=1, out=integral[1:, 1:])
    sums = integral[patch:, patch:] - integral[:-patch, patch:] - integral[patch:, :-patch] + integral[:-patch, :-patch]
    return sums[::stride, ::stride]


def informative(scores: NDArray, fraction: float) -> NDArray[np.intp]:
    """Positions of the most informative patches of one picture.

    Args:
        scores: scores from `patch_scores`, (rows, columns).
        fraction: share of the positions to keep, in (0, 1].

    Returns:
        Row and column indices into `scores`, (n, 2), n at least 1.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    n = max(1, round(scores.size * fraction))
    best = np.argpartition(scores.ravel(), scores.size - n)[scores.size - n :]
    return np.stack(np.unravel_index(np.sort(best), scores.shape), axis=1)


def _drawn(seed: int) -> NDArray[np.intp]:
    """The most informative quarter of the patches of random errors."""
    return informative(patch_scores(np.random.default_rng(seed).random((9, 7)), 3), 0.25)


METHOD = Method(
    id=185,
    name="SamplingAug",
    kind="procedure",
    summary="Train on the patches that bicubic interpolation gets wrong, found by one integral image.",
    paper=Paper(
        "SamplingAug: On the Importance of Patch Sampling Augmentation for Single Image Super-Resolution",
        "S. Wang et al.",
        2021,
        "arXiv:2111.15185",
    ),
    cases={
        "best_quarter": Procedure(
            run=_drawn,
            empty=lambda: patch_scores(np.zeros((0, 0)), 3),
            refuses="patch of 3 does not fit a picture of 0×0 pixels",
        )
    },
)
