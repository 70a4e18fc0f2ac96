"""LASI: two pictures are as far apart as the weights by which each of their pixels is predicted from its neighbours.

*Source*: D. Severo et al., "The Unreasonable Effectiveness of Linear Prediction as a Perceptual Metric", ICLR 2024
(arXiv:2310.05986), section 3. With n_j the D pixels nearest to pixel j among those before it in raster order, and
|i - j| the sum of the distances in rows and columns, the embedding of pixel i solves weighted least squares:

    w_i = argmin_w Σ_{j < i} 0.8^|i - j| (x_j - w · n_j)² + λ |w|² = (A_i + λ I)⁻¹ b_i
    A_i = Σ_{j < i} 0.8^|i - j| n_j n_jᵀ,  b_i = Σ_{j < i} 0.8^|i - j| x_j n_j
    distance(x, y) = mean over pixels of | w_i(x) / |w_i(x)| - w_i(y) / |w_i(y)| |

The weights of a sum are a product of one for rows and one for columns, so all sums together are two products with
matrices of powers: no loop over pixels, at H + 2W multiply-adds for each pixel and pair of neighbours.

*Differs from the paper*: channels are compared one by one, and the mean is taken. Neighbours outside of the picture
are 0, which is grey; the authors' code takes farther ones inside.

*Provenance*: written from the paper; λ = 80 / 127.5 for values in [-1, 1], the unit length and the 1e-6 added before it
were looked up in the authors' code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Objective
from foveal.record import Method, Paper

__all__ = ["lasi", "lasi_distance", "neighbours", "prediction_weights"]

DECAY = 0.8
RIDGE = 80 / 127.5
TINY = 1e-6


def neighbours(dim: int) -> list[tuple[int, int]]:
    """The nearest pixels before a pixel.

    Args:
        dim: D, at least 1.

    Returns:
        Offsets in rows and columns, nearest first, else in raster order.

    Raises:
        ValueError: a number below 1.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}; 8 is the default")
    reach = range(-dim, dim + 1)
    before = [(row, column) for row in reach for column in reach if (row, column) < (0, 0)]
    return sorted(before, key=lambda offset: (abs(offset[0]) + abs(offset[1]), offset))[:dim]


def _sums(x: Tensor) -> Tensor:
    """Σ_{j < i} 0.8^|i - j| x_j for each pixel i, (…, H, W) to the same."""
    rows, columns = (torch.arange(side, device=x.device, dtype=x.dtype) for side in x.shape[-2:])
    above = torch.tril(DECAY ** (rows[:, None] - rows).abs(), -1)
    across = DECAY ** (columns[:, None] - columns).abs()
    return above @ (x @ across) + x @ torch.triu(across, 1)


def _solved(rows: list[Tensor]) -> Tensor:
    """Solve a symmetric positive definite system for each pixel: Gaussian elimination, with pixels side by side.

    Args:
        rows: row i of the matrix from its diagonal on, then its right side, (D - i + 1, …).

    Returns:
        (D, …).
    """
    for i, row in enumerate(rows):
        for j in range(i + 1, len(rows)):
            rows[j] = rows[j] - row[j - i] / row[0] * row[j - i :]
    found: list[Tensor] = []
    for row in reversed(rows):
        known = sum((a * w for a, w in zip(row[1:-1], found, strict=True)), start=torch.zeros_like(row[0]))
        found.insert(0, (row[-1] - known) / row[0])
    return torch.stack(found)


def prediction_weights(x: Tensor, dim: int = 8) -> Tensor:
    """Embedding of each pixel.

    Args:
        x: pictures, (B, C, H, W), values in [0, 1].
        dim: D, number of neighbours.

    Returns:
        w, (D, B, C, H, W).
    """
    places, (height, width) = neighbours(dim), x.shape[2:]
    x = 2 * x - 1
    up, side = max(-row for row, _ in places), max(abs(column) for _, column in places)
    padded = F.pad(x, (side, side, up, 0))
    # (D, B, C, H, W)
    near = torch.stack([padded[..., up + row :, side + column :][..., :height, :width] for row, column in places])
    first, second = torch.triu_indices(dim, dim, device=x.device)
    # (D (D + 1) / 2 + D, B, C, H, W)
    sums = _sums(torch.cat([near[first] * near[second], x * near]))
    *halves, right = sums.split([*range(dim, 0, -1), dim])
    return _solved(
        [torch.cat([half[:1] + RIDGE, half[1:], one[None]]) for half, one in zip(halves, right, strict=True)]
    )


def lasi_distance(x: Tensor, y: Tensor, dim: int = 8) -> Tensor:
    """Distance of each pair of pictures, 0 to 2.

    Args:
        x: pictures, (B, C, H, W), values in [0, 1].
        y: pictures of the same shape.
        dim: D, number of neighbours.

    Returns:
        (B,).

    Raises:
        ValueError: different shapes.
    """
    if x.shape != y.shape:
        raise ValueError(f"pictures must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}; resize them")
    ours, theirs = (F.normalize(prediction_weights(z, dim) + TINY, dim=0) for z in (x, y))
    return torch.linalg.vector_norm(ours - theirs, dim=0).mean((1, 2, 3))


def lasi(out: Tensor, target: Tensor, dim: int = 8) -> Tensor:
    """The mean of `lasi_distance`, an objective.

    Args:
        out: pictures, (B, C, H, W), values in [0, 1].
        target: pictures of the same shape.
        dim: D, number of neighbours.

    Returns:
        Scalar.
    """
    return lasi_distance(out, target, dim).mean()


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    out, target = torch.rand(2, 2, 1, 5, 6, generator=generator)
    return {"out": out, "target": target, "dim": 3}


def _loss(out: Tensor, target: Tensor, dim: int) -> Tensor:
    return lasi(out, target.detach(), dim)


def _best(seed: int) -> dict[str, Any]:
    inputs = _inputs(seed)
    return {**inputs, "out": inputs["target"].clone()}


METHOD = Method(
    id=246,
    name="LASI",
    kind="objective",
    summary="Two pictures are as far apart as the weights that predict their pixels from their neighbours.",
    paper=Paper(
        "The Unreasonable Effectiveness of Linear Prediction as a Perceptual Metric",
        "D. Severo et al.",
        2024,
        "arXiv:2310.05986",
    ),
    cases={"lasi": Objective(_loss, _inputs, learns=("out",), best=_best)},
)
