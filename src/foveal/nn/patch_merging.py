"""Halves a map by laying four neighbours on top of each other, as Swin and the first VMamba do."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

__all__ = ["PatchMerging"]


class PatchMerging(nn.Module):
    """(B, C, H, W) to (B, out_channels, ⌈H/2⌉, ⌈W/2⌉); zeros complete an odd side.

    Args:
        in_channels: C.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(4 * in_channels, eps=1e-5)
        self.reduction = nn.Conv2d(4 * in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        # In this form a traced graph of free sides knows that the padded ones are even; height % 2 would hide it.
        x = F.pad(x, (0, columns * 2 - width, 0, rows * 2 - height))
        # (B, 4·C, ⌈H/2⌉, ⌈W/2⌉), channel 4·c + 2·i + j from row i and column j of four neighbours;
        # F.pixel_unshuffle does the same, but not to a batch of no pictures
        x = x.reshape(batch, channels, rows, 2, columns, 2).permute(0, 1, 3, 5, 2, 4)
        return self.reduction(self.norm(x.reshape(batch, 4 * channels, rows, columns)))
