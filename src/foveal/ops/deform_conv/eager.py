"""Deformable convolution with all taps gathered at once, then one product of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["deform_conv2d_eager", "places"]


def places(
    offset: Tensor, kernel_size: tuple[int, int], stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Where the taps read.

    Args:
        offset: offsets, (B, 2·G·K, H', W').
        kernel_size: kh and kw.
        stride: s.
        padding: p.
        dilation: d.

    Returns:
        Rows and columns, (B, G, K, H', W') each, in pixels of the input.
    """
    down, across = offset.shape[2:]
    tall, wide = kernel_size
    # (B, G, kh, kw, 2, H', W')
    moved = offset.unflatten(1, (-1, tall, wide, 2))
    rows = torch.arange(tall, device=offset.device)[:, None, None, None] * dilation
    rows = rows + torch.arange(down, device=offset.device)[:, None] * stride - padding
    columns = torch.arange(wide, device=offset.device)[:, None, None] * dilation
    columns = columns + torch.arange(across, device=offset.device) * stride - padding
    return (moved[:, :, :, :, 0] + rows).flatten(2, 3), (moved[:, :, :, :, 1] + columns).flatten(2, 3)


def _read(x: Tensor, at_y: Tensor, at_x: Tensor, share: Tensor) -> Tensor:
    """Values of x (B, G, c, H, W) at whole places (B, G, N), times a share (B, G, N), zero outside: (B, G, c, N)."""
    height, width = x.shape[3:]
    inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
    index = (at_y.clamp(0, height - 1) * width + at_x.clamp(0, width - 1)).long()
    values = x.flatten(3).gather(3, index[:, :, None].expand(-1, -1, x.shape[2], -1))
    return values * (share * inside)[:, :, None]


def _between(x: Tensor, at_y: Tensor, at_x: Tensor) -> Tensor:
    """Values of x (B, G, c, H, W) between pixels, at (B, G, N): (B, G, c, N)."""
    top, left = at_y.detach().floor(), at_x.detach().floor()
    low, right = at_y - top, at_x - left
    values = _read(x, top, left, (1 - low) * (1 - right)) + _read(x, top, left + 1, (1 - low) * right)
    return values + _read(x, top + 1, left, low * (1 - right)) + _read(x, top + 1, left + 1, low * right)


def deform_conv2d_eager(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    *,
    whole: bool = False,
) -> Tensor:
    """`deform_conv2d_reference`, vectorised.

    Args:
        x: input, (B, C, H, W).
        offset: offsets, (B, 2·G·K, H', W').
        weight: weight, (O, C/groups, kh, kw).
        bias: bias, (O,), or None.
        mask: factors, (B, G·K, H', W'), or None.
        stride: s.
        padding: p.
        dilation: d.
        whole: whether a tap reads the nearest pixel; without gradients it then reads one, not four.

    Returns:
        Output, (B, O, H', W').
    """
    (batch, channels, height, width), (down, across) = x.shape, offset.shape[2:]
    kernel = (weight.shape[2], weight.shape[3])
    at_y, at_x = places(offset, kernel, stride, padding, dilation)
    count, sides = at_y.shape[2], at_y.shape[1:]
    # What lies further outside reads zeros as well, and fits into an index: (B, G, K·H'·W')
    at_y, at_x = at_y.clamp(-2, height + 1).flatten(2), at_x.clamp(-2, width + 1).flatten(2)
    parts = x.unflatten(1, (sides[0], -1))
    learnt = not whole or (torch.is_grad_enabled() and (offset.requires_grad or x.requires_grad))
    values = _between(parts, at_y, at_x) if learnt else x.new_zeros(())
    if whole:
        near = _read(parts, at_y.round(), at_x.round(), torch.ones_like(at_y))
        values = values + (near - values).detach()
    if mask is not None:
        values = values * mask.unflatten(1, (sides[0], -1)).flatten(2)[:, :, None]
    groups = channels // weight.shape[1]
    # (B, groups, C/groups·K, H'·W')
    columns = values.reshape(batch, groups, weight.shape[1] * count, down * across)
    y = (weight.reshape(groups, -1, columns.shape[2]) @ columns).reshape(batch, -1, down, across)
    return y if bias is None else y + bias[:, None, None]
