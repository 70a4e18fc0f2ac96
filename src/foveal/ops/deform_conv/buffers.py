"""What a deformable convolution makes hardware hold and read, counted from the places that its taps read.

Rows of the input arrive in order, and rows of the output are made in order. A row must be held from its arrival until
no later output reads it; the line buffer is as tall as the most rows held at once. A pixel is read if its bilinear
share is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.ops.deform_conv.eager import places

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Buffers", "buffers", "most_rows"]


@dataclass(frozen=True)
class Buffers:
    """Counts of one layer for one picture.

    Args:
        rows: most rows of the input held at once.
        bytes: bytes of those rows.
        reads: pixels read, each as often as a tap reads it, for one channel.
    """

    rows: int
    bytes: int
    reads: int


def most_rows(height: int, kernel_size: int, *, dilation: int = 1, reach: int | None = None) -> int:
    """Rows that a layer may have to hold, whatever its offsets are.

    Args:
        height: height of the input.
        kernel_size: side of the kernel.
        dilation: d.
        reach: furthest that a tap moves along an axis; None for any distance.

    Returns:
        min(H, (k − 1)·d + 1 + 2·reach), or H.
    """
    return height if reach is None else min(height, (kernel_size - 1) * dilation + 1 + 2 * reach)


@torch.no_grad()
def buffers(
    offset: Tensor,
    shape: tuple[int, ...],
    kernel_size: tuple[int, int],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    element: int = 1,
) -> Buffers:
    """Count what given offsets make hardware hold and read.

    Args:
        offset: offsets of one picture after all restrictions, (1, 2·G·K, H', W').
        shape: shape of the input, (1, C, H, W).
        kernel_size: kh and kw.
        stride: s.
        padding: p.
        dilation: d.
        element: bytes of one value.

    Returns:
        The counts.
    """
    _, channels, height, width = shape
    at_y, at_x = places(offset, kernel_size, stride, padding, dilation)
    top, left = at_y.floor(), at_x.floor()
    first, last, reads = [], [], 0
    for dy in (0, 1):
        for dx in (0, 1):
            y, x = top + dy, left + dx
            share = (1 - (at_y - y).abs()) * (1 - (at_x - x).abs())
            read = (share > 0) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            reads += int(read.sum())
            first.append(torch.where(read, y, height).amin((0, 1, 2, 4)))
            last.append(torch.where(read, y, -1.0).amax((0, 1, 2, 4)))
    # A row of outputs reads none before `needed`; what it or an earlier one reads has arrived.
    needed, arrived = torch.stack(first).amin(0), torch.stack(last).amax(0).cummax(0).values
    rows = max(0, int((arrived - needed).max()) + 1)
    return Buffers(rows, rows * width * channels * element, reads)
