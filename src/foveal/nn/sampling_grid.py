"""Sampling grids that enlarge salient parts of a picture and shrink the others, and that are undone exactly.

Each axis has a piecewise linear map of [0, 1] onto itself, given by its values t₀ < … < t_{n-1} at evenly spaced knots:

    T(u)   = t₀ + Σᵢ clamp(u (n - 1) - i, 0, 1) (t_{i+1} - tᵢ)          from the zoomed picture to the picture
    T⁻¹(v) = Σᵢ clamp((v - tᵢ) / (t_{i+1} - tᵢ), 0, 1) / (n - 1)         and back, i = 0 … n - 2

Rows and columns have one map each (a separable grid), so that a cell of the grid is a rectangle that is mapped
bilinearly, and the inverse of each cell is as simple as the map. Zooming reads a picture at T of the pixel centres of
the result, unzooming reads features at T⁻¹. Positions count from edge to edge: pixel i of n has its centre at
(i + ½) / n, so that a map of features needs no other grid than the picture that it was computed from.

The maps follow a saliency, (B, n) above 0 at the knots, by attraction: with a Gaussian k,

    tᵢ = Σⱼ S(j) k(j - i) j / Σⱼ S(j) k(j - i) / (n - 1)

where S is mirrored at both ends, which keeps t₀ = 0 and t_{n-1} = 1. It is computed as a displacement from i, a sum
over S(i + j) - S(i - j), which is exactly 0 where S is uniform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SamplingGrid", "attract", "centres", "pull", "push", "resample", "resample_plain"]


def attract(saliency: Tensor, *, reach: float = 0.25) -> Tensor:
    """Knots of a map that follows a saliency.

    Args:
        saliency: saliency at evenly spaced knots, (B, n) above 0, n at least 2.
        reach: full width at half maximum of the attraction, a share of the axis, above 0.

    Returns:
        Knots t, (B, n), ascending from 0 to 1.

    Raises:
        ValueError: fewer than two knots, or a reach that is not above 0.
    """
    count = saliency.shape[-1]
    if count < 2:
        raise ValueError(f"saliency must have at least 2 values an axis, got {count}; one cannot say where to look")
    if reach <= 0:
        raise ValueError(f"reach must be above 0, got {reach}; 0.25 is a quarter of the axis")
    last = count - 1
    steps = torch.arange(1, count, device=saliency.device, dtype=saliency.dtype)
    kernel = torch.exp(-4 * math.log(2) * (steps / (reach * last)) ** 2)
    # (B, n, 2n - 1): what each knot sees, from n - 1 before it to n - 1 behind it
    seen = F.pad(saliency[:, None], (last, last), mode="reflect")[:, 0].unfold(1, 2 * last + 1, 1)
    before, here, behind = seen[..., :last].flip(-1), seen[..., last], seen[..., last + 1 :]
    moved = ((behind - before) * kernel * steps).sum(-1) / (here + ((behind + before) * kernel).sum(-1))
    return (torch.arange(count, device=saliency.device, dtype=saliency.dtype) + moved) / last


def push(knots: Tensor, at: Tensor) -> Tensor:
    """T: where positions of the zoomed picture lie in the picture.

    Args:
        knots: t, (B, n).
        at: positions, (P,) or (B, P), in [0, 1]; others are taken to the nearest end.

    Returns:
        Positions, (B, P).
    """
    cells = torch.arange(knots.shape[1] - 1, device=knots.device, dtype=knots.dtype)
    share = (at[..., None] * len(cells) - cells).clamp(0, 1)
    return knots[:, :1] + (share * knots.diff(dim=1)[:, None]).sum(-1)


def pull(knots: Tensor, at: Tensor) -> Tensor:
    """T⁻¹: where positions of the picture lie in the zoomed picture.

    Args:
        knots: t, (B, n), ascending.
        at: positions, (P,) or (B, P); those outside of the map are taken to its nearest end.

    Returns:
        Positions, (B, P), in [0, 1].
    """
    share = (at[..., None] - knots[:, None, :-1]) / knots.diff(dim=1)[:, None]
    return share.clamp(0, 1).mean(-1)


def centres(count: int, like: Tensor) -> Tensor:
    """Centres of pixels.

    Args:
        count: number of pixels of an axis.
        like: tensor whose device and dtype are taken.

    Returns:
        Positions in (0, 1), (count,).
    """
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read a picture bilinearly at all crossings of rows and columns; beyond the outer centres, pixels are repeated.

    Args:
        x: picture or features, (B, C, H, W).
        rows: positions, (B or 1, h), 0 is the upper edge and 1 the lower one.
        columns: positions, (B or 1, w).

    Returns:
        Picture, (B, C, h, w).
    """
    shape = x.shape[0], rows.shape[1], columns.shape[1]
    grid = torch.stack((columns[:, None].expand(shape), rows[..., None].expand(shape)), -1)
    return F.grid_sample(x, (2 * grid - 1).to(x.dtype), padding_mode="border", align_corners=False)


def _weights(positions: Tensor, count: int) -> Tensor:
    """Weights of pixels in a bilinear reading, (B, P, count)."""
    places = (positions * count - 0.5).clamp(0, count - 1)[..., None]
    return (1 - (places - torch.arange(count, device=places.device, dtype=places.dtype)).abs()).clamp(min=0)


def resample_plain(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`resample` as two matrix products, for tests.

    Args:
        x: picture or features, (B, C, H, W).
        rows: positions, (B or 1, h).
        columns: positions, (B or 1, w).

    Returns:
        Picture, (B, C, h, w).
    """
    down = _weights(rows, x.shape[2])[:, None] @ x
    return down @ _weights(columns, x.shape[3])[:, None].mT


@dataclass(frozen=True, eq=False)
class SamplingGrid:
    """A separable zoom and its inverse, see above.

    Args:
        rows: knots of the vertical map, (B or 1, n), ascending from 0 to 1.
        columns: knots of the horizontal map, (B or 1, m).

    Raises:
        ValueError: knots of another shape.
    """

    rows: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            knots = getattr(self, name)
            if knots.ndim != 2 or knots.shape[1] < 2:
                raise ValueError(f"{name} must be (B, n) with n at least 2, got {tuple(knots.shape)}; add the batch")

    @classmethod
    def from_saliency(cls, saliency: Tensor, *, reach: float = 0.25) -> SamplingGrid:
        """The grid that enlarges what is salient; a uniform saliency gives one that changes nothing.

        Args:
            saliency: saliency map, (B, n, m), above 0, of any scale. Its knots are the corners of the grid's cells.
            reach: width of the attraction, a share of each axis; the larger, the stronger and smoother the zoom.

        Returns:
            The grid.

        Raises:
            ValueError: a map of another shape, or with values that are not above 0.
        """
        if saliency.ndim != 3:
            raise ValueError(f"saliency must be (B, n, m), got {tuple(saliency.shape)}; add the batch, drop channels")
        if not torch.compiler.is_compiling() and not bool((saliency > 0).all()):
            raise ValueError(f"saliency must be above 0, got {float(saliency.min()):.3g}; add a small constant to it")
        return cls(attract(saliency.sum(2), reach=reach), attract(saliency.sum(1), reach=reach))

    def zoom(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Read a picture through the grid.

        Args:
            x: picture, (B, C, H, W).
            size: height and width of the result.

        Returns:
            Zoomed picture, (B, C, *size).
        """
        at = centres(size[0], self.rows), centres(size[1], self.columns)
        return resample(x, push(self.rows, at[0]), push(self.columns, at[1]))

    def unzoom(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring features of a zoomed picture back to places of the picture.

        Args:
            x: features, (B, C, h, w), of any stride.
            size: height and width of the result.

        Returns:
            Features, (B, C, *size).
        """
        at = centres(size[0], self.rows), centres(size[1], self.columns)
        return resample(x, pull(self.rows, at[0]), pull(self.columns, at[1]))

    def density(self, size: tuple[int, int], zoomed: tuple[int, int]) -> Tensor:
        """How many pixels of the zoomed picture lie in each pixel of the picture.

        Args:
            size: height and width of the picture.
            zoomed: height and width of the zoomed picture.

        Returns:
            Pixels per pixel, (B, *size), which sum to those of the zoomed picture.
        """
        down, across = (
            count * pull(knots, torch.arange(side + 1, device=knots.device, dtype=knots.dtype) / side).diff(dim=1)
            for knots, side, count in zip((self.rows, self.columns), size, zoomed, strict=True)
        )
        return down[..., None] * across[:, None]
