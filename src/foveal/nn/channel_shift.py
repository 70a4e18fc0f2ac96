"""Shift of channel groups by one pixel, each group in its own direction, without parameters.

*Source*: B. Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions", CVPR 2018
(arXiv:1711.08141); with eight directions: G. Wu et al., arXiv:2307.16140, section 3.2. Group i of the channels reads
the neighbour in direction (dyᵢ, dxᵢ), zero beyond the border:

    shift(x)[c, y, x] = x[c, y + dyᵢ, x + dxᵢ],   i = ⌊8c / C⌋

followed by a 1×1 convolution W it is a 3×3 convolution with one weight other than 0 for each pair of channels:

    kernel[o, c, 1 + dyᵢ, 1 + dxᵢ] = W[o, c]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DIRECTIONS", "ShiftConv2d", "shift8", "shifted_kernel"]

# Where each eighth of the channels reads, (dy, dx); the order of G. Wu et al.
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (1, -1), (-1, 1), (-1, -1))


def shift8(x: Tensor) -> Tensor:
    """Shift each eighth of the channels by one pixel.

    Args:
        x: features, (B, C, H, W), C a multiple of 8.

    Returns:
        (B, C, H, W), 0 where a group reads beyond the border.
    """
    # A negative padding crops; backward takes one copy of each group.
    groups = (
        F.pad(part, (-dx, dx, -dy, dy)) for part, (dy, dx) in zip(x.chunk(len(DIRECTIONS), 1), DIRECTIONS, strict=True)
    )
    return torch.cat(list(groups), 1)


def shifted_kernel(weight: Tensor) -> Tensor:
    """The 3×3 kernel of a shift followed by a 1×1 convolution.

    Args:
        weight: weight of the 1×1 convolution, (C', C, 1, 1), C a multiple of 8.

    Returns:
        (C', C, 3, 3), one weight other than 0 for each pair of channels.
    """
    kernel = weight.new_zeros(*weight.shape[:2], 3, 3)
    part = weight.shape[1] // len(DIRECTIONS)
    for i, (dy, dx) in enumerate(DIRECTIONS):
        channels = slice(i * part, (i + 1) * part)
        kernel[:, channels, 1 + dy, 1 + dx] = weight[:, channels, 0, 0]
    return kernel


class ShiftConv2d(nn.Conv2d):
    """Shift of eight groups, then a 1×1 convolution; (B, C, H, W) to (B, C', H, W).

    Args:
        in_channels: C, a multiple of 8.
        out_channels: C'.

    Raises:
        ValueError: channels that eight groups cannot share.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        if in_channels < len(DIRECTIONS) or in_channels % len(DIRECTIONS):
            raise ValueError(
                f"channels must be a multiple of {len(DIRECTIONS)}, one group for each direction, got {in_channels}"
            )
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(shift8(x))

    @torch.no_grad()
    def expanded(self) -> nn.Conv2d:
        """The same map as one 3×3 convolution.

        Returns:
            Convolution with zero padding, nine times as many weights, eight ninths of them 0.
        """
        conv = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1).to(self.weight)
        conv.weight.copy_(shifted_kernel(self.weight))
        assert self.bias is not None
        assert conv.bias is not None
        conv.bias.copy_(self.bias)
        return conv
