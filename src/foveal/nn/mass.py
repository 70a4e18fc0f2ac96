"""MASS, the mixer of A2Mamba: window attention at two scales, and a scan whose states the same attention maps mix.

*Source*: M. Lou et al., "A2Mamba: Attention-augmented State Space Models for Visual Recognition", 2025
(arXiv:2507.16624), section III. The heads are split into two halves; each attends to K×K neighbours, the second half
with the largest dilation that fits into the map:

    q, k, v = W x, with rotary positions of row and column in q and k        (B, C, H, W) to three of (B, heads, H·W, P)
    a₁ = softmax(q₁ k₁ᵀ + bias);  v₁' = a₁ v₁;  a₂ = softmax(q₂ k₂ᵀ + bias);  v₂' = a₂ (v₁' + v₂)
    u = silu(dw₅([v₁', v₂']));  h = states of the scan of u in raster order
    h' = W_heads [a₁ h₁, a₂ h₂];  y_t = C_tᵀ h'_t + D ∘ u_t
    out = W norm((norm(y) + dw₅(v)) ∘ silu(batchnorm(W_g x)))

In the last stage, full attention replaces the scan: y = softmax(q kᵀ + bias) [v₁', v₂'].

*Differs from the paper*: maps may be smaller than a window, see `foveal.nn.neighbourhood`.
*Provenance*: written from the paper; the rotary angles and the bias shared by both halves were looked up in the
authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.nn.fused_states import FusedStates
from foveal.nn.neighbourhood import Neighbours, neighbourhood_scores, neighbourhood_sum, neighbours

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MASS", "rotary"]

_GRID = 7  # side of the last stage's map at the size for which its bias is stored


def rotary(x: Tensor, height: int, width: int) -> Tensor:
    """Rotate pairs of channels by angles proportional to the row (first half) and to the column (second half).

    Angles are at least float32: in half precision those of the last positions would be off by several percent.

    Args:
        x: queries or keys, (B, heads, H·W, C), C a multiple of 4.
        height: H.
        width: W.

    Returns:
        The same shape and dtype.
    """
    dim, wide = x.shape[-1], torch.promote_types(x.dtype, torch.float32)
    angle = 10000 ** -torch.linspace(0, 1, dim // 4, device=x.device, dtype=wide)
    rows = torch.arange(height, device=x.device, dtype=wide)[:, None, None] * angle
    columns = torch.arange(width, device=x.device, dtype=wide)[None, :, None] * angle
    # (H·W, C/2), one angle a pair
    turn = torch.cat((rows.expand(-1, width, -1), columns.expand(height, -1, -1)), -1).reshape(-1, dim // 2)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turn.cos(), turn.sin()
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2).to(x.dtype)


class MASS(nn.Module):
    """Attention at two scales and a scan that reuses its attention maps, (B, C, H, W) to the same.

    Args:
        dim: C.
        num_heads: number of heads, even; C / num_heads must be a multiple of 4.
        window: K, odd.
        attend_all: whether full attention replaces the scan.
        aggregate: whether the attention maps mix the scan's states; if not, attention and scan are only stacked.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int, *, attend_all: bool = False, aggregate: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.aggregate = num_heads, window, aggregate
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), nn.SiLU())
        self.local = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.bias = nn.Parameter(torch.zeros(num_heads // 2, 2 * window - 1, 2 * window - 1))
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.proj = nn.Sequential(LayerNorm2d(dim, eps=1e-6), nn.Conv2d(dim, dim, 1))
        self.attend_all = attend_all
        if attend_all:
            self.bias_all = nn.Parameter(torch.zeros(1, num_heads, _GRID**2, _GRID**2))
        else:
            self.conv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
            self.ssm = FusedStates(dim)
            self.heads = nn.Conv2d(num_heads, num_heads, 1)

    def gathered(self, states: Tensor, maps: Sequence[Tensor], near: Sequence[Neighbours]) -> Tensor:
        """Sum each state over its neighbours, weighted by the attention map of its half, then mix the heads.

        Args:
            states: hidden states of the scan, (B, C, H, W).
            maps: attention weights of each half, (B, heads/2, H·W, K²).
            near: neighbours of each half.

        Returns:
            The same shape as the states.
        """
        # (B, heads, H·W, C/heads), two halves of the heads
        split = states.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
        if self.aggregate:
            halves = [neighbourhood_sum(*each) for each in zip(maps, split.chunk(2, dim=1), near, strict=True)]
            split = torch.cat(halves, 1)
        return self.heads(split).transpose(2, 3).reshape(states.shape)

    def _over_all(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[2]
        # Like the authors, resize the table of all pairs itself; at its own size that changes nothing.
        bias = F.interpolate(self.bias_all, (length, length), mode="bicubic", align_corners=False)
        return (query @ key.transpose(-1, -2) + bias).softmax(-1) @ value

    def forward(self, x: Tensor) -> Tensor:
        _, dim, height, width = x.shape
        qkv = self.qkv(x)
        local = self.local(qkv[:, 2 * dim :])
        # (B, 3·heads, H·W, C/heads)
        query, key, value = qkv.flatten(2).unflatten(1, (3 * self.num_heads, -1)).transpose(2, 3).chunk(3, dim=1)
        query, key = rotary(query, height, width) * query.shape[-1] ** -0.5, rotary(key, height, width)
        maps: list[Tensor] = []
        near: list[Neighbours] = []
        sums: list[Tensor] = []
        for q, k, v, dilation in zip(query.chunk(2, 1), key.chunk(2, 1), value.chunk(2, 1), (1, None), strict=True):
            near.append(neighbours(height, width, self.window, dilation=dilation, device=x.device))
            maps.append(neighbourhood_scores(q, k, near[-1], self.bias).softmax(-1))
            sums.append(neighbourhood_sum(maps[-1], v + sums[0] if sums else v, near[-1]))
        y = torch.cat(sums, 1)
        if self.attend_all:
            y = self._over_all(query, key, y).transpose(2, 3).reshape(x.shape)
        else:
            u = F.silu(self.conv(y.transpose(2, 3).reshape(x.shape)))
            y = self.ssm(u, lambda states: self.gathered(states, maps, near))
        return self.proj((self.norm(y) + local) * self.gate(x))
