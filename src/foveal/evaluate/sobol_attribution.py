"""Sobol attribution: how much of the variance of a class score each region of a picture explains, by masks alone.

*Source*: T. Fel, R. Cadène, M. Chalvidal, M. Cord, D. Vigouroux, T. Serre, "Look at the Variance! Efficient Black-box
Explanations with Sobol-based Sensitivity Analysis", NeurIPS 2021 (arXiv:2111.04138). A mask of d cells, uniform in
[0, 1], dims the regions of a picture; f is the score of the dimmed picture. Two drawn matrices A and B of N masks, and
A with column i of B for each cell, A_B^i, give Jansen's estimates

    S_i = 1 - Σ (f(B) - f(A_B^i))² / 2NV,      T_i = Σ (f(A) - f(A_B^i))² / 2NV,      V = variance of f(A)

of the share of the variance that cell i explains alone, and together with others; the map is T. That takes N·(d + 2)
forward passes and no gradient. Rows of A and B come from a Sobol sequence in 2d dimensions, N a power of 2.

*Differs from the paper*: the sequence is scrambled, so that there are seeds.
*Provenance*: written from the paper's abstract and the authors' code,
https://github.com/fel-thomas/Sobol-Attribution-Method, of which nothing is copied. Total indices equal those of its
`JansenEstimator` to 1e-6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["deletion", "replicated_design", "sobol_attribution", "sobol_indices"]


def replicated_design(count: int, dim: int, *, seed: int = 0, quasi: bool = True) -> Tensor:
    """Rows of A, of B, and of A with each of its columns in turn from B.

    Args:
        count: N, a power of 2 for quasi-random rows.
        dim: d.
        seed: seed of the scrambling, or of the numbers.
        quasi: whether rows are of a Sobol sequence, else independent.

    Returns:
        (N·(d + 2), d), float64 in [0, 1].

    Raises:
        ValueError: a number of rows that spoils the sequence.
    """
    if count < 2 or (quasi and count & (count - 1)):
        raise ValueError(f"count must be a power of 2, at least 2, got {count}; 32 is usual")
    if quasi:
        rows = torch.quasirandom.SobolEngine(2 * dim, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    else:
        rows = torch.rand(count, 2 * dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a, b = rows.split(dim, 1)
    column = torch.eye(dim, dtype=torch.bool)[:, None]
    return torch.cat([a, b, torch.where(column, b, a).flatten(0, 1)])


def sobol_indices(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Jansen's estimates from the values of a function at the rows of a replicated design.

    Args:
        values: (…, N·(d + 2)).
        dim: d.

    Returns:
        First-order and total indices, (…, d) each; 0 for a constant function.

    Raises:
        ValueError: a number of values that is no multiple of d + 2.
    """
    if values.shape[-1] % (dim + 2):
        raise ValueError(f"there must be a multiple of {dim + 2} values, got {values.shape[-1]}")
    parts = values.unflatten(-1, (dim + 2, -1))
    a, b, mixed = parts[..., :1, :], parts[..., 1:2, :], parts[..., 2:, :]
    variance = a.var(-1)
    total = (a - mixed).square().mean(-1) / (2 * variance)
    first = 1 - (b - mixed).square().mean(-1) / (2 * variance)
    constant = variance == 0
    return first.masked_fill(constant, 0.0), total.masked_fill(constant, 0.0)


@torch.no_grad()
def sobol_attribution(
    model: Callable[[Tensor], Tensor],
    pictures: Tensor,
    labels: Tensor,
    *,
    grid: int = 8,
    count: int = 32,
    baseline: float = 0.0,
    batch: int = 256,
    seed: int = 0,
) -> Tensor:
    """Map of total indices of each picture.

    Args:
        model: classifier, (B, C, H, W) to (B, classes); set it to eval mode before.
        pictures: (n, C, H, W).
        labels: class whose score is explained, (n,) int64.
        grid: cells in a row and in a column, so that d is its square.
        count: N, a power of 2; each picture takes N·(d + 2) forward passes.
        baseline: value that a masked pixel has.
        batch: pictures in a forward pass.
        seed: seed of the masks, which are the same for all pictures.

    Returns:
        (n, H, W): how much of the variance of the score each region takes part in.
    """
    masks = replicated_design(count, grid**2, seed=seed).to(pictures).view(-1, 1, grid, grid)
    maps = []
    for picture, label in zip(pictures, labels, strict=True):
        scores = []
        for some in masks.split(batch):
            shown = F.interpolate(some, picture.shape[-2:], mode="nearest")
            scores.append(model(baseline + (picture - baseline) * shown)[:, label])
        maps.append(sobol_indices(torch.cat(scores).double(), grid**2)[1].to(pictures))
    cells = torch.stack(maps).view(-1, 1, grid, grid)
    return F.interpolate(cells, pictures.shape[-2:], mode="bilinear")[:, 0]


@torch.no_grad()
def deletion(
    model: Callable[[Tensor], Tensor],
    pictures: Tensor,
    labels: Tensor,
    maps: Tensor,
    *,
    steps: int = 32,
    baseline: float = 0.0,
) -> Tensor:
    """Deletion score (Petsiuk et al., arXiv:1806.07421): the area below the probability of a class as pixels go.

    Args:
        model: classifier, (B, C, H, W) to logits, (B, classes).
        pictures: (n, C, H, W).
        labels: the class, (n,) int64.
        maps: importance of each pixel, (n, H, W); the most important go first.
        steps: parts in which they go.
        baseline: value that a deleted pixel has.

    Returns:
        (n,), in [0, 1]; lower is better.
    """
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(maps)
    probabilities = []
    for step in range(steps + 1):
        gone = rank < round(step * rank[0].numel() / steps)
        left = pictures.masked_fill(gone[:, None], baseline)
        probabilities.append(model(left).softmax(-1).gather(1, labels[:, None])[:, 0])
    return torch.trapezoid(torch.stack(probabilities), dx=1 / steps, dim=0)


def _first_of_a_product(seed: int) -> Tensor:
    rows = replicated_design(16, 2, seed=seed)
    return sobol_indices(rows.prod(1), 2)[0]


METHOD = Method(
    id=162,
    name="SobolAttribution",
    kind="procedure",
    summary="Quasi-random masks tell how much of the variance of a class score each region of a picture explains.",
    paper=Paper(
        "Look at the Variance! Efficient Black-box Explanations with Sobol-based Sensitivity Analysis",
        "T. Fel et al.",
        2021,
        "arXiv:2111.04138",
    ),
    cases={"product": Procedure(_first_of_a_product)},
)
