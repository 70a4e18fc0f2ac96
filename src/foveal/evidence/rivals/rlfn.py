"""RLFN: the baseline of the efficient super-resolution challenges, four blocks of three convolutions and an attention.

*Source*: F. Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPR Workshops 2022
(arXiv:2205.07514), in the size of B. Ren et al., "The Ninth NTIRE 2024 Efficient Super-Resolution Challenge Report"
(arXiv:2404.10343): 46 channels, 48 inside a block, 317,218 parameters.

    block(x) = ESA(W₁ₓ₁ (x + act conv act conv act conv x)),   act leaky by 0.05
    ESA(x) = x ∘ σ(W (up(conv(maxpool₇,₃(conv₃,₂(r)))) + W r)),   r = W x with 16 channels

*Provenance*: written from the paper; with the challenge's weights it equals the challenge's code to the bit.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RLFN"]


class _Attention(nn.Module):
    """ESA, (B, C, H, W) to the same; smaller sides than 15 are filled up by repeating the border."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=2)
        self.conv3 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv4 = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        wide = F.pad(reduced, (0, max(0, 15 - x.shape[3]), 0, max(0, 15 - x.shape[2])), mode="replicate")
        seen = self.conv3(F.max_pool2d(self.conv2(wide), 7, 3))
        seen = F.interpolate(seen, wide.shape[2:], mode="bilinear")[..., : x.shape[2], : x.shape[3]]
        return x * self.conv4(seen + self.conv_f(reduced)).sigmoid()


class _Block(nn.Module):
    def __init__(self, dim: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(dim, hidden, 3, padding=1)
        self.c2_r = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.c3_r = nn.Conv2d(hidden, dim, 3, padding=1)
        self.c5 = nn.Conv2d(dim, dim, 1)
        self.esa = _Attention(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            y = F.leaky_relu(conv(y), 0.05)
        return self.esa(self.c5(y + x))


class RLFN(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s.
        dim: channels between blocks.
        hidden: channels inside a block.
        depth: number of blocks.
        inner: channels of the attention.
        in_channels: C.
    """

    def __init__(
        self, scale: int = 4, *, dim: int = 46, hidden: int = 48, depth: int = 4, inner: int = 16, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.scale = scale
        self.conv_1 = nn.Conv2d(in_channels, dim, 3, padding=1)
        for number in range(1, depth + 1):
            self.add_module(f"block_{number}", _Block(dim, hidden, inner))
        self.blocks = [f"block_{number}" for number in range(1, depth + 1)]
        self.conv_2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(dim, in_channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.conv_1(x)
        for name in self.blocks:
            y = self._modules[name](y)  # type: ignore[misc]
        return self.upsampler(self.conv_2(y) + first)
