"""MS-SSIM as a loss: pictures are compared by local contrast and structure at several scales, not pixel by pixel.

*Source*: J. Snell et al., "Learning to Generate Images with Perceptual Similarity Metrics", ICIP 2017
(arXiv:1511.06409), section 2; the measure is that of Z. Wang, E. P. Simoncelli and A. C. Bovik, "Multiscale Structural
Similarity for Image Quality Assessment", Asilomar 2003. With means μ, variances σ² and covariance σ_xy under a Gaussian
window of 11×11 (σ = 1.5), at scale j, whose pictures are 2^(j - 1) times smaller by averaging 2×2 pixels,

    L = (2 μ_x μ_y + C₁) / (μ_x² + μ_y² + C₁),   S_j = (2 σ_xy + C₂) / (σ_x² + σ_y² + C₂)
    MS-SSIM = mean(L · S_M)^γ_M · Π_{j < M} mean(S_j)^γ_j,   loss = 1 - MS-SSIM

C₁ = (0.01 R)², C₂ = (0.03 R)² for values in a range of R; means are over pixels and channels of a picture, (C, H, W);
γ = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), finest scale first.

*Differs from the paper*: at the coarsest scale the window reaches over the border, where the picture is reflected, as
in torchmetrics; pictures whose coarsest scales would be smaller than the window use the scales that fit, which share
the exponents; a mean of S below 1e-6, that of an inverted picture, counts as 1e-6, where it gives no gradient.

*Provenance*: written from the papers. Equals torchmetrics 1.9 (`multiscale_structural_similarity_index_measure`) on
drawn pictures of 176 to 200 pixels: values to 2e-9 and gradients to 2e-8 of the largest in float64, compared by hand.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Objective
from foveal.record import Method, Paper

__all__ = ["EXPONENTS", "WINDOW", "ms_ssim", "ms_ssim_loss"]

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first
WINDOW, SIGMA = 11, 1.5
LEAST = 1e-6
LONG = 1500  # pixels of a row


def _window(like: Tensor) -> Tensor:
    """Weights of a row of the window, (11,)."""
    at = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def _band(length: int, window: Tensor) -> Tensor:
    """The window at every place of a row, as a matrix, (length, length - 10)."""
    matrix = window.new_zeros(length, length - WINDOW + 1)
    for k in range(WINDOW):
        matrix.diagonal(-k).copy_(window[k].expand(length - WINDOW + 1))
    return matrix


def _blurred(planes: Tensor, window: Tensor) -> Tensor:
    """Weighted means wherever the window lies inside, (n, 1, H, W) to (n, 1, H - 10, W - 10).

    By two matrices, although they are mostly 0: on a CPU six times as fast as convolutions of one channel, and thirty
    times in training, until rows are long.
    """
    height, width = planes.shape[-2:]
    if max(height, width) > LONG:
        return F.conv2d(F.conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return _band(height, window).T @ (planes @ _band(width, window))


def ms_ssim(x: Tensor, y: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Structural similarity of pictures at up to five scales.

    Args:
        x: pictures, (B, C, H, W), at least 11×11 pixels; five scales take 176×176.
        y: pictures of the same shape.
        data_range: R, the largest value less the smallest: 1 for pixel values in [0, 1].

    Returns:
        Similarity of each picture, (B,), above 0 and at most 1, which only equal pictures reach.

    Raises:
        ValueError: different shapes, or pictures smaller than the window.
    """
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(f"MS-SSIM takes two batches (B, C, H, W) of one shape, got {tuple(x.shape)}, {tuple(y.shape)}")
    side = min(x.shape[-2:])
    if side < WINDOW:
        raise ValueError(
            f"MS-SSIM needs {WINDOW}×{WINDOW} pixels, got {x.shape[-1]}×{x.shape[-2]}; take larger pictures or patches"
        )
    levels = min(len(EXPONENTS), int(math.log2(side // WINDOW)) + 1)
    share = sum(EXPONENTS) / sum(EXPONENTS[:levels])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    window, batch = _window(x), len(x)
    x, y = x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None]  # (B·C, 1, H, W)
    similarity = x.new_ones(batch)
    for level, exponent in enumerate(EXPONENTS[:levels]):
        if level == levels - 1:
            x, y = (F.pad(planes, (WINDOW // 2,) * 4, mode="reflect") for planes in (x, y))
        mean_x, mean_y, square, product = _blurred(torch.cat([x, y, x * x + y * y, x * y]), window).chunk(4)
        means = mean_x * mean_x + mean_y * mean_y
        similar = (2 * (product - mean_x * mean_y) + c2) / (square - means + c2)
        if level == levels - 1:
            similar = similar * (2 * mean_x * mean_y + c1) / (means + c1)
        similarity = similarity * similar.view(batch, -1).mean(1).clamp_min(LEAST) ** (exponent * share)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return similarity


def ms_ssim_loss(out: Tensor, target: Tensor) -> Tensor:
    """1 - MS-SSIM, the mean over pictures.

    Args:
        out: a network's pictures, (B, C, H, W), values in [0, 1]; others are not clipped.
        target: what they should be, of the same shape; it gets no gradient.

    Returns:
        Scalar in [0, 1).
    """
    return 1 - ms_ssim(out, target.detach()).mean()


def _pair(seed: int, *, noise: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(2, 3, 25, 23, generator=generator)
    return {"out": target + noise * torch.randn(target.shape, generator=generator), "target": target}


METHOD = Method(
    id=103,
    name="MS-SSIM training loss",
    kind="objective",
    summary="Trains networks that make pictures by structural similarity at several scales.",
    paper=Paper(
        "Learning to Generate Images with Perceptual Similarity Metrics",
        "J. Snell et al.",
        2017,
        "arXiv:1511.06409",
    ),
    cases={
        "ms_ssim": Objective(
            ms_ssim_loss,
            lambda seed: _pair(seed, noise=0.1),
            learns=("out",),
            best=lambda seed: _pair(seed, noise=0.0),
        )
    },
)
