"""SCNet: a super-resolution network of 1×1 convolutions, whose channels are shifted to see their neighbours.

*Source*: G. Wu et al., "Fully 1×1 Convolutional Network for Lightweight Image Super-Resolution", Machine Intelligence
Research 2024 (arXiv:2307.16140), section 3. A 1×1 convolution to C features, blocks, an upsampling layer for each
factor of 2 (or one of 3), two 1×1 convolutions, bilinear upscaling of the picture added. A block, x: (B, C, H, W):

    x + W₂ relu(shift(W₁ x))

`shift` moves each eighth of the channels by one pixel in one of the eight directions. The upsampling layer is the
paper's better one (section 4.3): 1×1 convolution, leaky ReLU, shift, 1×1 convolution to C·s² channels, pixel shuffle.
With `shuffle=False` it is the paper's first one: bilinear upsampling by s, then the same with C channels.

*Differs from the paper*: the shift stands behind the ReLU, where it gives the same values. Slopes and initial weights
(a tenth of He's) are those of the authors' code.

*Provenance*: written from the paper; slopes and layer sizes were looked up in the authors' code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.channel_shift import ShiftConv2d
from foveal.record import Method, Paper

__all__ = ["SCNet", "SCResBlock"]


class SCResBlock(nn.Module):
    """x + W₂ shift(relu(W₁ x)), (B, C, H, W) to the same.

    Args:
        dim: C, a multiple of 8.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv2 = ShiftConv2d(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class _Up(nn.Module):
    """(B, C, H, W) to (B, C, s·H, s·W)."""

    def __init__(self, dim: int, scale: int, *, shuffle: bool) -> None:
        super().__init__()
        self.scale, self.shuffle = scale, shuffle
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv2 = ShiftConv2d(dim, dim * scale**2 if shuffle else dim)

    def forward(self, x: Tensor) -> Tensor:
        if not self.shuffle:
            x = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        x = self.conv2(F.leaky_relu(self.conv1(x), 0.02))
        return F.pixel_shuffle(x, self.scale) if self.shuffle else x


class SCNet(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s: 2, 3, 4 or 8.
        dim: width, a multiple of 8; 64 in SCNet-T.
        depth: number of blocks; 16 in SCNet-T.
        in_channels: C.
        shuffle: whether pixels are shuffled to the larger size, else interpolated.

    Raises:
        ValueError: another scale.
    """

    def __init__(
        self, scale: int = 4, *, dim: int = 64, depth: int = 16, in_channels: int = 3, shuffle: bool = True
    ) -> None:
        super().__init__()
        factors = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}.get(scale)
        if factors is None:
            raise ValueError(f"scale must be 2, 3, 4 or 8, got {scale}")
        self.scale = scale
        self.conv_first = nn.Conv2d(in_channels, dim, 1)
        self.body = nn.Sequential(*(SCResBlock(dim) for _ in range(depth)))
        self.up = nn.ModuleList(_Up(dim, factor, shuffle=shuffle) for factor in factors)
        self.conv_hr = nn.Conv2d(dim, dim, 1)
        self.conv_last = nn.Conv2d(dim, in_channels, 1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)
                conv.weight.data.mul_(0.1)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    @property
    def margin(self) -> int:
        """Bound on the radius of the receptive field in input pixels: one for each block, two for each upsampling."""
        return len(self.body) + 2 * len(self.up)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(F.leaky_relu(self.conv_first(x), 0.1))
        for up in self.up:
            features = F.leaky_relu(up(features), 0.1)
        out = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.1))
        return out + F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)


METHOD = Method(
    id=44,
    name="SCNet",
    kind="model",
    summary="A super-resolution network of 1×1 convolutions; channels are shifted by a pixel in eight directions.",
    paper=Paper(
        "Fully 1×1 Convolutional Network for Lightweight Image Super-Resolution",
        "G. Wu et al.",
        2024,
        "arXiv:2307.16140",
    ),
    models={"scnet_t": SCNet},
    cases={"scnet_t": {"scale": 2, "dim": 8, "depth": 1}},
)
