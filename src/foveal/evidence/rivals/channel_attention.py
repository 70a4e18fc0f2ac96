"""Rival of attention among pixels: Restormer's attention among channels (S. W. Zamir et al., arXiv:2111.09881)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelAttention"]


class ChannelAttention(nn.Module):
    """Multi-head transposed attention, (B, C, H, W) to the same: each channel is a token of H·W values.

    Args:
        dim: C.
        num_heads: heads, a divisor of C.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # (B, C, H, W) to (B, heads, C / heads, N)
        query, key, value = (
            t.flatten(2).unflatten(1, (self.num_heads, -1)) for t in self.qkv_dwconv(self.qkv(x)).chunk(3, 1)
        )
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT
        return self.project_out((F.softmax(scores * self.temperature, -1) @ value).view_as(x))
