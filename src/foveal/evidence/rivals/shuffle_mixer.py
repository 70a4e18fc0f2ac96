"""ShuffleMixer: large depthwise kernels and channels mixed in halves, without attention.

*Source*: L. Sun et al., "ShuffleMixer: An Efficient ConvNet for Image Super-Resolution", NeurIPS 2022
(arXiv:2205.15175), section 3. A 3×3 convolution, blocks, pixel shuffles of 2 (or one of 3) behind 1×1 convolutions, a
3×3 convolution, bilinear upscaling of the picture added. A block, with depthwise k×k kernels D:

    layer(x) = half(norm D(y)) + D(y),   y = half(norm x) + x     half: W₂ silu(W₁ ·) on half of the channels, shuffled
    x' = layer(layer(x)) + x,   out = W₄ silu(W₃ * x') + x'       W₃: 3×3 to C + 16 channels, W₄: 1×1

*Differs from the paper*: nothing.

*Provenance*: written from the paper; sizes and the norm without a bias were looked up in the authors' code, which it
equals to 2e-6 under shared weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ShuffleMixer"]

GROUPS = 8  # of the channel shuffle


class _Norm(nn.Module):
    """Layer norm over channels without a bias, (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight).permute(0, 3, 1, 2)


class _Half(nn.Module):
    """A pointwise network on half of the channels, then a shuffle of all of them; (B, C, H, W) to the same."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        self.norm = _Norm(dim)
        self.fc = nn.Sequential(
            nn.Conv2d(dim // 2, expansion * dim // 2, 1), nn.SiLU(), nn.Conv2d(expansion * dim // 2, dim // 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed, kept = self.norm(x).chunk(2, 1)
        return F.channel_shuffle(torch.cat([self.fc(mixed), kept], 1), GROUPS)


class _Layer(nn.Module):
    def __init__(self, dim: int, kernel_size: int, expansion: int) -> None:
        super().__init__()
        self.first, self.second = _Half(dim, expansion), _Half(dim, expansion)
        self.spatial = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(self.first(x) + x)
        return self.second(x) + x


class _Block(nn.Module):
    def __init__(self, dim: int, kernel_size: int, expansion: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(_Layer(dim, kernel_size, expansion) for _ in range(2)))
        self.conv = nn.Sequential(nn.Conv2d(dim, dim + 16, 3, padding=1), nn.SiLU(), nn.Conv2d(dim + 16, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x) + x
        return self.conv(x) + x


class ShuffleMixer(nn.Module):
    """(B, C, H, W) to (B, C, s·H, s·W), values in [0, 1].

    Args:
        scale: s: 2, 3 or 4.
        dim: width, a multiple of 8.
        depth: number of blocks.
        kernel_size: k, odd.
        expansion: ratio of a pointwise network's hidden width to its input's.
        in_channels: C.
    """

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 64,
        depth: int = 5,
        kernel_size: int = 7,
        expansion: int = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(in_channels, dim, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(_Block(dim, kernel_size, expansion) for _ in range(depth)))
        self.up = nn.Sequential()
        for factor in (2, 2) if scale == 4 else (scale,):
            self.up.extend([nn.Conv2d(dim, dim * factor**2, 1), nn.PixelShuffle(factor), nn.SiLU()])
        self.tail = nn.Conv2d(dim, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        base = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.tail(self.up(self.blocks(self.head(x)))) + base
