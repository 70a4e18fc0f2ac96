"""Resampling between two grids of any sizes, smaller or larger, each axis with its own scale.

Both grids cover the same rectangle. Pixel i of n new ones has its centre at (i + ½) · m / n of m old ones, in units of
old pixels, and its cell is m / n old pixels long: above 1 where a picture becomes smaller, below 1 where it becomes
larger. `resampled` reads a row of points in every cell; where cells are shorter than the distance of the points, the
points are one old pixel apart, so that they reach the neighbours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cells", "places", "resampled", "resized", "rounded"]

Size = tuple[int, int]  # rows and columns


def places(old: int, new: int, points: int = 1) -> Tensor:
    """Where the points of new pixels lie along one side.

    Args:
        old: m, pixels of a side before.
        new: n, pixels of it after.
        points: points of a cell, evenly spread over it, at least one old pixel apart.

    Returns:
        Distance from the side's beginning in old pixels, (n · points,) in float64; 0.5 is the middle of the first one.
    """
    cell = old / new
    step = max(1.0, cell / points)
    around = (torch.arange(points, dtype=torch.float64) - (points - 1) / 2) * step
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * cell
    return (centres[:, None] + around).flatten()


def resampled(x: Tensor, size: Size, *, points: int = 3) -> Tensor:
    """Read features at points of every new pixel, bilinearly; the border is repeated.

    Args:
        x: features, (B, C, H, W).
        size: h, w, new rows and columns.
        points: p, points along each axis of a cell.

    Returns:
        (B, C · p², h, w), channels as `torch.pixel_unshuffle` orders them: the points of a channel row by row.
    """
    height, width = x.shape[-2:]
    down = places(height, size[0], points) * 2 / height - 1
    across = places(width, size[1], points) * 2 / width - 1
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1).to(x)  # (p · h, p · w, 2)
    read = F.grid_sample(
        x, grid.expand(len(x), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return F.pixel_unshuffle(read, points)


def cells(old: Size, new: Size) -> Tensor:
    """What tells a network where new pixels lie on the old grid: position and scale.

    Args:
        old: H, W, rows and columns before.
        new: h, w, rows and columns after.

    Returns:
        (4, h, w): offset of each centre from that of the old pixel it lies in, along rows and along columns, -0.5 to
        0.5; log₂ of the cell's rows and columns in old pixels.
    """
    planes = []
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        # In whole numbers: a centre on the border of two old pixels always falls to the second one.
        offset = ((2 * torch.arange(after) + 1) * before % (2 * after)) / (2 * after) - 0.5
        planes.append((offset if axis else offset[:, None]).expand(new))
    planes += [torch.full(new, math.log2(before / after)) for before, after in zip(old, new, strict=True)]
    return torch.stack(planes)


def resized(x: Tensor, size: Size) -> Tensor:
    """Bicubic resizing (a = -0.5), with a filter as wide as the cells where a side becomes smaller.

    Args:
        x: (B, C, H, W).
        size: h, w.

    Returns:
        (B, C, h, w); it may leave the range of x.
    """
    return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)


def rounded(x: Tensor) -> Tensor:
    """A picture as a file of 8 bits holds it; gradients pass as if nothing had happened.

    Args:
        x: of any shape, nominally in [0, 1].

    Returns:
        The same shape; multiples of 1/255 in [0, 1].
    """
    return x + (x.clamp(0, 1).mul(255).round() / 255 - x).detach()
