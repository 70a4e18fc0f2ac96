"""SAFMN: each quarter of the channels sees the picture at its own resolution, and the result modulates the features.

*Source*: L. Sun et al., "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution", ICCV 2023
(arXiv:2302.13800), section 3. A 3×3 convolution to C features, blocks with a residual over all of them, a 3×3
convolution to 3·s² channels, pixel shuffle. A block, x: (B, C, H, W):

    y = SAFM(norm(x)) + x;   z = CCM(norm(y)) + y
    SAFM(x) = gelu(W [up(dwconvᵢ(maxpool_2ⁱ(xᵢ)))]) ∘ x,   i = 0 … 3,   xᵢ: (B, C / 4, H, W)

SAFM splits the channels in four; group i is max-pooled by 2ⁱ, goes through a 3×3 depthwise convolution and is upsampled
(nearest); W, a 1×1 convolution, mixes the groups. CCM is a 3×3 convolution to twice the channels, GELU, and a 1×1
convolution back. The normalisation is over the channels of each pixel.

*Differs from the paper*: a side below 8 pixels is pooled to one pixel instead of being rejected.

*Provenance*: written from the paper. Parameter names are those of the authors' code, so that their weights load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["SAFMN", "channel_norm"]

LEVELS = 4


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Normalise the channels of each pixel to mean 0 and variance 1, then scale and shift.

    Args:
        x: features, (B, C, H, W).
        weight: scale of each channel, (C,).
        bias: shift of each channel, (C,).
        eps: constant added to the variance.

    Returns:
        (B, C, H, W).
    """
    centred = x - x.mean(1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    return scaled * weight[:, None, None] + bias[:, None, None]


def _pool(x: Tensor, factor: int) -> Tensor:
    """Maximum over each of (H // factor)·(W // factor) nearly equal cells."""
    # Export traces one path for all sizes: the plain one, correct if `factor` divides both sides.
    if torch.compiler.is_exporting() or (x.shape[2] % factor == 0 and x.shape[3] % factor == 0):
        return F.max_pool2d(x, factor)
    return F.adaptive_max_pool2d(x, (max(1, x.shape[2] // factor), max(1, x.shape[3] // factor)))


class _Norm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.weight, self.bias)


class _Modulation(nn.Module):
    """SAFM, (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        part = dim // LEVELS
        self.mfr = nn.ModuleList(nn.Conv2d(part, part, 3, padding=1, groups=part) for _ in range(LEVELS))
        self.aggr = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for level, (conv, part) in enumerate(zip(self.mfr, x.chunk(LEVELS, dim=1), strict=True)):
            # (B, C/4, H / 2ⁱ, W / 2ⁱ) and back to (B, C/4, H, W)
            seen = conv(_pool(part, 2**level) if level else part)
            parts.append(F.interpolate(seen, size=x.shape[2:], mode="nearest") if level else seen)
        return F.gelu(self.aggr(torch.cat(parts, dim=1))) * x


class _Mixer(nn.Module):
    """CCM, (B, C, H, W) to the same."""

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.ccm = nn.Sequential(nn.Conv2d(dim, hidden, 3, padding=1), nn.GELU(), nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.ccm(x)


class _Block(nn.Module):
    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = _Norm(dim)
        self.norm2 = _Norm(dim)
        self.safm = _Modulation(dim)
        self.ccm = _Mixer(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = self.safm(self.norm1(x)) + x
        return self.ccm(self.norm2(x)) + x


class SAFMN(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        dim: width, a multiple of 4; the paper's is 36.
        depth: number of blocks; the paper's is 8.
        expansion: ratio of a mixer's hidden width to its width.
        in_channels: C.

    Raises:
        ValueError: if the scale is below 1, or the width is not a multiple of 4.
    """

    def __init__(
        self, scale: int = 4, *, dim: int = 36, depth: int = 8, expansion: float = 2.0, in_channels: int = 3
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if dim < LEVELS or dim % LEVELS:
            raise ValueError(f"dim must be a multiple of {LEVELS}, got {dim}")
        self.scale = scale
        self.to_feat = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.feats = nn.Sequential(*[_Block(dim, expansion) for _ in range(depth)])
        last = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)
        self.to_img = nn.Sequential(last, nn.PixelShuffle(scale))

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels: a block extends it by one 8-pixel cell and one pixel.

        Exact only for tiles that start at multiples of `multiple`; for others the cells are shifted.
        """
        return 2 + len(self.feats) * (2 * self.multiple)

    @property
    def multiple(self) -> int:
        """Number of which the exported network's input sides must be multiples: the side of the coarsest cell."""
        return 2 ** (LEVELS - 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.to_feat(x)
        return self.to_img(self.feats(features) + features)


METHOD = Method(
    id=125,
    name="SAFMN",
    kind="model",
    summary="Four groups of channels see the picture at four resolutions and modulate it.",
    paper=Paper(
        "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution",
        "L. Sun et al.",
        2023,
        "arXiv:2302.13800",
    ),
    models={"safmn": SAFMN},
    cases={"safmn": {"scale": 2, "dim": 4, "depth": 1}},
)
