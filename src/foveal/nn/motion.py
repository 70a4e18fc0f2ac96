"""Motion between pictures: warping along a flow, and the times at which a rolling shutter reads its rows.

A flow (B, 2, H, W) holds pixels to the right and pixels down. Warping reads each pixel elsewhere,

    y(p) = x(p + flow(p)),

so a scene that moves by v pixels a frame is carried from time s, where it was seen, to time t by the flow v · (s − t),
with v as it is at the pixels of time t. For a rolling shutter s or t is a map: one time for each row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["inside", "row_map", "warped"]


def _places(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where a flow reads, in pixels to the right and down, (B, H, W) each."""
    height, width = flow.shape[-2:]
    across = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0]
    down = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1]
    return across, down


def warped(x: Tensor, flow: Tensor) -> Tensor:
    """Pictures read along a flow, bilinear, borders repeated. Differentiable in both.

    Args:
        x: (B, C, H, W).
        flow: pixels to the right and down, (B, 2, H, W).

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a flow that does not belong to the pictures.
    """
    if flow.shape != (len(x), 2, *x.shape[-2:]):
        raise ValueError(
            f"the flow of pictures {tuple(x.shape)} must be {(len(x), 2, *x.shape[-2:])}, got {tuple(flow.shape)}"
        )
    height, width = x.shape[-2:]
    across, down = _places(flow)
    grid = torch.stack([2 * across / max(width - 1, 1) - 1, 2 * down / max(height - 1, 1) - 1], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def inside(flow: Tensor) -> Tensor:
    """Which pixels a flow reads inside the picture.

    Args:
        flow: (B, 2, H, W).

    Returns:
        1 inside and 0 outside, (B, 1, H, W).
    """
    height, width = flow.shape[-2:]
    across, down = _places(flow)
    within = (across >= 0) & (across <= width - 1) & (down >= 0) & (down <= height - 1)
    return within.to(flow.dtype)[:, None]


def row_map(height: int, *, reverse: bool = False) -> Tensor:
    """When a rolling shutter reads each row, in units of the time that it takes for all rows.

    Args:
        height: H.
        reverse: bottom to top.

    Returns:
        Times in [0, 1], (H, 1).
    """
    times = torch.linspace(0, 1, height)[:, None]
    return times.flip(0) if reverse else times
