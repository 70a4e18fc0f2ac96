"""Deformable convolution tap by tap.

x (B, C, H, W); offset (B, 2·G·K, H', W') of K = kh·kw taps, vertical before horizontal, for G groups of channels; mask
(B, G·K, H', W') or none; weight (O, C/groups, kh, kw). For a place p of the output and tap k at p_k = p·s − pad + k·d:

    y(p) = Σ_k w_k · x(p_k + Δ_k(p)) · m_k(p) + b                                                            (1)

x between pixels is bilinear, and zero outside the picture; its slope at a pixel is that to the next one. The
restrictions act on Δ, in this order:

    square    Δ_k = t(p)·(k − centre), one spread t ≥ 0 for each place and group                             (2)
    reach     Δ clamped to [−reach, reach], t to [0, reach/(furthest tap)]                                   (3)
    whole     Δ rounded; gradients are those of (1) at Δ before                                              (4)

Depthwise is groups = C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["deform_conv2d_reference", "restricted", "taps"]


def taps(kernel_size: tuple[int, int], like: Tensor) -> Tensor:
    """Places of the taps about the centre of the kernel.

    Args:
        kernel_size: kh and kw.
        like: tensor of the dtype and device wanted.

    Returns:
        Vertical and horizontal place of each tap, (K, 2).
    """
    sides = [torch.arange(k, dtype=like.dtype, device=like.device) - (k - 1) / 2 for k in kernel_size]
    return torch.cartesian_prod(*sides).view(-1, 2)


def restricted(
    offset: Tensor,
    kernel_size: tuple[int, int],
    *,
    square: bool = False,
    reach: int | None = None,
    whole: bool = False,
) -> Tensor:
    """Offsets under the restrictions: equations 2 to 4.

    Args:
        offset: offsets, (B, 2·G·K, H', W'), or with `square` spreads, (B, G, H', W').
        kernel_size: kh and kw.
        square: whether taps only move apart, all at one rate.
        reach: furthest that a tap may move along an axis, in pixels; None for any distance.
        whole: whether offsets are rounded to pixels.

    Returns:
        Offsets, (B, 2·G·K, H', W').
    """
    if square:
        # Not clamp, whose gradient is 0 at 0, where layers start.
        spread = torch.where(offset < 0, 0.0, offset)
        # (B, G, K, 2, H', W')
        offset = spread[:, :, None, None] * taps(kernel_size, offset)[..., None, None]
        furthest = (max(kernel_size) - 1) / 2
        if reach is not None and furthest:  # clamped together, so that the shape stays a square
            longest = furthest * spread[:, :, None, None]
            offset = offset * (reach / longest.clamp(min=reach or 1e-30))
        offset = offset.flatten(1, 3)
    elif reach is not None:
        offset = offset.clamp(-reach, reach)
    return offset + (offset.round() - offset).detach() if whole else offset


def _bilinear(x: Tensor, at_y: Tensor, at_x: Tensor) -> Tensor:
    """Values of x (B, c, H, W) at places (B, H', W'): (B, c, H', W')."""
    height, width = x.shape[2:]
    top, left = at_y.detach().floor(), at_x.detach().floor()
    low, right = at_y - top, at_x - left
    padded = F.pad(x, (1, 1, 1, 1))  # a border of zeros stands for all that is outside
    picture = torch.arange(len(x), device=x.device)[:, None, None]
    total = x.new_zeros(())
    for y, of_y in ((top, 1 - low), (top + 1, low)):
        for across, of_x in ((left, 1 - right), (left + 1, right)):
            row, column = y.clamp(-1, height).long() + 1, across.clamp(-1, width).long() + 1
            # (B, H', W', c)
            values = padded.permute(0, 2, 3, 1)[picture, row, column]
            total = total + values * (of_y * of_x)[..., None]
    return total.permute(0, 3, 1, 2)


def deform_conv2d_reference(
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
    """Equation 1, with 4 if asked.

    Args:
        x: input, (B, C, H, W).
        offset: offsets, (B, 2·G·K, H', W').
        weight: weight, (O, C/groups, kh, kw).
        bias: bias, (O,), or None.
        mask: factors, (B, G·K, H', W'), or None.
        stride: s.
        padding: p.
        dilation: d.
        whole: whether a tap reads the nearest pixel.

    Returns:
        Output, (B, O, H', W').
    """
    (batch, channels), (down, across) = x.shape[:2], offset.shape[2:]
    kernel = weight.shape[2:]
    count = kernel[0] * kernel[1]
    share = offset.shape[1] // (2 * count)  # G
    groups = channels // weight.shape[1]
    moved = offset.unflatten(1, (share, count, 2))
    parts = x.unflatten(1, (share, -1))
    y = x.new_zeros(batch, weight.shape[0], down, across)
    for k in range(count):
        rows = torch.arange(down, dtype=x.dtype, device=x.device)[:, None] * stride - padding
        columns = torch.arange(across, dtype=x.dtype, device=x.device) * stride - padding
        sampled = []
        for g in range(share):
            at_y = moved[:, g, k, 0] + rows + k // kernel[1] * dilation
            at_x = moved[:, g, k, 1] + columns + k % kernel[1] * dilation
            values = _bilinear(parts[:, g], at_y, at_x)
            if whole:
                values = values + (_bilinear(parts[:, g], at_y.round(), at_x.round()) - values).detach()
            sampled.append(values if mask is None else values * mask[:, None, g * count + k])
        y = y + F.conv2d(torch.cat(sampled, 1), weight[:, :, k // kernel[1], k % kernel[1], None, None], groups=groups)
    return y if bias is None else y + bias[:, None, None]
