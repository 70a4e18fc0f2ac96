"""EDSR: the plain residual network that methods for super-resolution are tried on.

*Source*: B. Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017
(arXiv:1707.02921), section 3. Blocks of two 3×3 convolutions without normalisation, a skip connection around all of
them, pixel shuffles of 2 (or one of 3), a last convolution.

*Differs from the paper*: the picture's mean is taken as 0.5 in each channel, a constant and no parameter.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["EDSR", "Block"]


class Block(nn.Module):
    """x + r · conv(relu(conv(x))), (B, C, H, W) to the same.

    Args:
        dim: C.
        residual: r, the factor of the branch; 0.1 for wide networks.
    """

    def __init__(self, dim: int, residual: float = 1.0) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))
        self.relu, self.residual = nn.ReLU(), residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual * self.conv2(self.relu(self.conv1(x)))


class EDSR(nn.Module):
    """(B, in_channels, H, W) to (B, in_channels, s·H, s·W), values in [0, 1].

    The size of the paper's largest network is `EDSR(4, dim=256, depth=32, residual=0.1)`.

    Args:
        scale: s: 2, 3 or 4.
        dim: channels of the blocks.
        depth: number of blocks.
        in_channels: channels of the picture.
        residual: factor of the blocks' branches.
    """

    def __init__(
        self, scale: int = 2, *, dim: int = 64, depth: int = 16, in_channels: int = 3, residual: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.body = nn.Sequential(*(Block(dim, residual) for _ in range(depth)))
        self.fuse = nn.Conv2d(dim, dim, 3, padding=1)
        self.up = nn.Sequential()
        for factor in (2, 2) if scale == 4 else (scale,):
            self.up.extend([nn.Conv2d(dim, dim * factor**2, 3, padding=1), nn.PixelShuffle(factor)])
        self.tail = nn.Conv2d(dim, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(x - 0.5)
        return self.tail(self.up(first + self.fuse(self.body(first)))) + 0.5
