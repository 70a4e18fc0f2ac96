"""Sliced MMD flow: particles become samples of a data set, down the gradient of a distance that sorting makes cheap.

*Source*: J. Hertrich et al., "Generative Sliced MMD Flows with Riesz Kernels", ICLR 2024 (arXiv:2305.11463), sections 2
to 4. For N particles x and M samples y in d dimensions and the Riesz kernel of r = 1, -|x - y|, the squared MMD is half
the energy distance

    F(x) = 1/(NM) Σ |x_i - y_j| - 1/(2N²) Σ |x_i - x_j| - 1/(2M²) Σ |y_i - y_j|

and equals its sliced version, so that its gradient is a mean over P directions ξ of gradients of numbers on a line:

    ∇_i F = c · E_ξ [ξ ∂_i F(ξ·x)]                                   c = √π Γ((d+1)/2) / Γ(d/2)
    ∂_i F = 1/(NM) (#{y < x_i} - #{y > x_i}) - 1/N² (#{x < x_i} - #{x > x_i})

Sorting counts these in O((N + M) log(N + M)) instead of O(N² + NM). With P directions the error is O(√(d/P)). The flow,
with step τ and momentum m, is

    v ← ∇F + m v,    x ← x - τ N v

*Differs from the paper*: only particles; the networks that are trained to imitate parts of the flow are not here. Equal
numbers count on neither side, where the authors' code orders them as the sort happens to.

*Provenance*: written from the paper. Without ties `gradient_1d` equals the authors' `MMD_derivative_1d` to 1e-8 (theirs
is in single precision), and `slicing_factor` their `sliced_factor`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "directions",
    "energy_distance",
    "flow",
    "gradient",
    "gradient_1d",
    "gradient_1d_reference",
    "mmd_1d",
    "mmd_1d_reference",
    "sliced_gradient",
    "slicing_factor",
]

ROWS = 256  # particles whose differences from all others are held at once


def mmd_1d(x: Tensor, y: Tensor) -> Tensor:
    """Squared MMD of numbers on lines, by sorting: the area of the squared difference of their distributions.

    Args:
        x: particles, (P, N).
        y: samples, (P, M).

    Returns:
        (P,).
    """
    both, order = torch.cat([x, y], -1).sort(-1)
    weight = torch.cat([torch.full_like(x, 1 / x.shape[-1]), torch.full_like(y, -1 / y.shape[-1])], -1)
    difference = weight.gather(-1, order).cumsum(-1)[..., :-1]
    return (both.diff(dim=-1) * difference**2).sum(-1)


def mmd_1d_reference(x: Tensor, y: Tensor) -> Tensor:
    """The same from all pairs.

    Args:
        x: particles, (P, N).
        y: samples, (P, M).

    Returns:
        (P,).
    """

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] - b[:, None]).abs().mean((1, 2))

    return mean(x, y) - mean(x, x) / 2 - mean(y, y) / 2


def _signs(at: Tensor, others: Tensor) -> Tensor:
    """How many more of the others are below each number than above it; both sorted, (P, N) and (P, M)."""
    below = torch.searchsorted(others, at, side="left")
    return (below + torch.searchsorted(others, at, side="right") - others.shape[-1]).to(at.dtype)


def gradient_1d(x: Tensor, y: Tensor) -> Tensor:
    """Gradient of `mmd_1d` with respect to the particles, by sorting.

    Args:
        x: particles, (P, N).
        y: samples, (P, M).

    Returns:
        ∂F, (P, N).
    """
    count, (particles, order) = x.shape[-1], x.sort(-1)
    samples = y.sort(-1).values
    sorted_gradient = _signs(particles, samples) / (count * y.shape[-1]) - _signs(particles, particles) / count**2
    return torch.empty_like(x).scatter_(-1, order, sorted_gradient)


def gradient_1d_reference(x: Tensor, y: Tensor) -> Tensor:
    """The same from all pairs.

    Args:
        x: particles, (P, N).
        y: samples, (P, M).

    Returns:
        ∂F, (P, N).
    """
    count, total = x.shape[-1], y.shape[-1]
    return torch.cat(
        [
            (some[..., None] - y[:, None]).sign().sum(-1) / (count * total)
            - (some[..., None] - x[:, None]).sign().sum(-1) / count**2
            for some in x.split(ROWS, -1)
        ],
        -1,
    )


def slicing_factor(dim: int) -> float:
    """Length of a vector over the mean length of its projections on lines.

    Args:
        dim: d, at least 1.

    Returns:
        c, about √(πd/2).

    Raises:
        ValueError: no dimension.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    return math.sqrt(math.pi) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


def directions(count: int, dim: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Unit vectors, uniform on the sphere.

    Args:
        count: P.
        dim: d.
        generator: source of randomness.

    Returns:
        (P, d).
    """
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=-1)


def sliced_gradient(x: Tensor, y: Tensor, along: Tensor) -> Tensor:
    """Gradient of the squared MMD, estimated along some directions.

    Args:
        x: particles, (N, d).
        y: samples, (M, d).
        along: unit vectors, (P, d).

    Returns:
        ∇F, (N, d).

    Raises:
        ValueError: particles, samples and directions of different dimensions.
    """
    if not x.shape[-1] == y.shape[-1] == along.shape[-1]:
        raise ValueError(
            f"particles, samples and directions must have one dimension, got {x.shape[-1]}, {y.shape[-1]} and "
            f"{along.shape[-1]}; flatten pictures"
        )
    slopes = gradient_1d(along @ x.mT, along @ y.mT)  # (P, N)
    return slicing_factor(x.shape[-1]) * slopes.mT @ along / len(along)


def gradient(x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the squared MMD from all pairs, without slices.

    Args:
        x: particles, (N, d).
        y: samples, (M, d).

    Returns:
        ∇F, (N, d).
    """
    unit = torch.nn.functional.normalize
    attracted = torch.cat([unit(some[:, None] - y, dim=-1).mean(1) for some in x.split(ROWS)])
    repelled = torch.cat([unit(some[:, None] - x, dim=-1).mean(1) for some in x.split(ROWS)])
    return (attracted - repelled) / len(x)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance of two samples, twice the squared MMD.

    Args:
        x: (N, d).
        y: (M, d).

    Returns:
        2 E|x - y| - E|x - x'| - E|y - y'|, at least 0.
    """
    exact = "donot_use_mm_for_euclid_dist"
    between, ours, theirs = (torch.cdist(a, b, compute_mode=exact).mean() for a, b in ((x, y), (x, x), (y, y)))
    return float(2 * between - ours - theirs)


def flow(
    x: Tensor, y: Tensor, *, slices: int = 500, step_size: float = 1.0, momentum: float = 0.0, seed: int = 0
) -> Iterator[Tensor]:
    """Particles that flow towards samples, without end.

    Args:
        x: particles at the start, (N, d).
        y: samples, (M, d).
        slices: P, drawn anew at each step.
        step_size: τ, in the unit of the data: a particle moves by at most 2τ and what the slices miss.
        momentum: m, in [0, 1).
        seed: seed of the directions.

    Yields:
        Particles after each step, (N, d).

    Raises:
        ValueError: a momentum outside [0, 1), or no slice.
    """
    if not 0 <= momentum < 1 or slices < 1:
        raise ValueError(
            f"momentum must be in [0, 1) and slices at least 1, got {momentum} and {slices}; 0.7 and 500 are usual"
        )
    generator = torch.Generator().manual_seed(seed)
    velocity = torch.zeros_like(x)
    while True:
        along = directions(slices, x.shape[-1], generator=generator).to(x)
        velocity = sliced_gradient(x, y, along) + momentum * velocity
        x = x - step_size * len(x) * velocity
        yield x


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(3, 7, generator=generator), "y": torch.randn(3, 5, generator=generator)}


METHOD = Method(
    id=234,
    name="SlicedMMDFlow",
    kind="operator",
    summary="Sorting along random lines gives the gradient of a distance to data; particles flow down it to the data.",
    paper=Paper("Generative Sliced MMD Flows with Riesz Kernels", "J. Hertrich et al.", 2024, "arXiv:2305.11463"),
    cases={"lines": Operator(mmd_1d, mmd_1d_reference, _inputs)},
)
