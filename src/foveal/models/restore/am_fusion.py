"""AMFusionNet: visible and infrared pictures made one by filters of three sizes and spatial and channel attention.

*Source*: Q. Xu and Z. Chen, "Fusion of Infrared and Visible Images based on Spatial-Channel Attentional Mechanism",
2023 (arXiv:2308.13672). Luminance of the visible picture v and the infrared picture i, (B, 1, H, W) each:

    F = [encode_v(v), encode_i(i)]             (B, 2C, H, W); a layer is [conv3, conv5, conv7] of C / 3 channels each
    F' = F ⊙ σ(conv7[mean_c F, max_c F]) + F ⊙ σ(W₂ lrelu(W₁ mean_hw F))         spatial, and channel attention
    out = (v + i) / 2 + decode(F')             3×3 convolutions to C, C / 2 and 1 channel

Trained without targets (`fusion_loss`): MS-SSIM to both pictures, the brighter value, and the stronger gradient:

    1 - (MS-SSIM(o, v) + MS-SSIM(o, i)) / 2 + α mean |o - max(v, i)| + β mean |∇o - ∇s|,   s: v or i, by larger |∇|

*Differs from the paper*: the decoder adds to the mean of both pictures, so that with its last layer 0, as at the start,
the network averages; sizes are for a training of minutes. MS-SSIM has as many of its five scales as fit the patch.

*Provenance*: from the paper's description; there is no code of the authors, and its widths and weights of the loss are
chosen here.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["AMFusionNet", "fusion_loss", "gradients", "ms_ssim"]

KERNELS = (3, 5, 7)
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales of MS-SSIM, finest first
WINDOW, SIGMA = 11, 1.5


def _blurred(x: Tensor) -> Tensor:
    """Weighted mean under SSIM's window wherever it lies inside, (B, C, H, W) to (B, C, H - 10, W - 10)."""
    place = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    weights = torch.exp(-place.square() / (2 * SIGMA**2))
    weights = (weights / weights.sum()).to(x)
    channels = x.shape[1]
    for shape in ((1, -1), (-1, 1)):
        x = F.conv2d(x, weights.view(1, 1, *shape).expand(channels, -1, -1, -1), groups=channels)
    return x


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity at several scales, differentiable: at most five, and as many as hold the window of 11×11.

    Args:
        x: (B, 1, H, W) in [0, 1], at least 11 pixels a side.
        y: the same.

    Returns:
        (B,), at most 1.
    """
    c1, c2 = 0.01**2, 0.03**2
    levels = 1
    while levels < len(EXPONENTS) and min(x.shape[2:]) >= WINDOW * 2**levels:
        levels += 1
    total, out = sum(EXPONENTS[:levels]), x.new_ones(len(x))
    for level, exponent in enumerate(EXPONENTS[:levels]):
        # One convolution for all five means.
        mean_x, mean_y, xx, yy, xy = _blurred(torch.cat([x, y, x * x, y * y, x * y], 1)).split(1, 1)
        similar = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
        if level == levels - 1:
            similar = similar * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        # The power has no gradient at 0, which similarity may reach before a network is trained.
        out = out * similar.mean((1, 2, 3)).clamp_min(1e-3) ** (exponent / total)
        if level < levels - 1:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return out


def gradients(x: Tensor) -> Tensor:
    """Differences to the next pixel to the right and below.

    Args:
        x: (B, 1, H, W).

    Returns:
        (B, 2, H - 1, W - 1).
    """
    here = x[..., :-1, :-1]
    return torch.cat([x[..., :-1, 1:] - here, x[..., 1:, :-1] - here], 1)


def fusion_loss(out: Tensor, pair: Tensor, *, intensity: float = 0.1, gradient: float = 6.0) -> Tensor:
    """The loss, which needs no target.

    Args:
        out: fused luminance, (B, 1, H, W).
        pair: luminance of the visible picture and the infrared picture, (B, 2, H, W) in [0, 1].
        intensity: α.
        gradient: β.

    Returns:
        A scalar.
    """
    visible, infrared = pair.split(1, 1)
    similar = (ms_ssim(out, visible) + ms_ssim(out, infrared)) / 2
    of_visible, of_infrared = gradients(visible), gradients(infrared)
    stronger = of_visible.square().sum(1, keepdim=True) >= of_infrared.square().sum(1, keepdim=True)
    wanted = torch.where(stronger, of_visible, of_infrared)
    values = F.l1_loss(out, torch.maximum(visible, infrared))
    return 1 - similar.mean() + intensity * values + gradient * F.l1_loss(gradients(out), wanted)


class _Sizes(nn.Module):
    """A layer of parallel convolutions of several sizes, (B, C, H, W) to (B, dim, H, W)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        part = dim // len(KERNELS)
        self.parts = nn.ModuleList(nn.Conv2d(in_channels, part, k, padding=k // 2) for k in KERNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(torch.cat([part(x) for part in self.parts], 1), 0.1)


class _Attention(nn.Module):
    """Spatial and channel attention in parallel, (B, C, H, W) to the same."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.down, self.up = nn.Conv2d(dim, dim // ratio, 1), nn.Conv2d(dim // ratio, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        channels = self.up(F.leaky_relu(self.down(x.mean((2, 3), keepdim=True)), 0.1))
        return x * (torch.sigmoid(self.spatial(seen)) + torch.sigmoid(channels))


class AMFusionNet(nn.Module):
    """Fusion network, (B, 2, H, W), visible luminance and infrared, to (B, 1, H, W); values in [0, 1].

    Args:
        dim: C, features of one picture, a multiple of 3.
        depth: layers of each encoder.
        attention: whether there is attention; False for the paper's ablation.

    Raises:
        ValueError: a width that three filter sizes cannot share.
    """

    in_channels, out_channels, scale = 2, 1, 1

    def __init__(self, *, dim: int = 24, depth: int = 1, attention: bool = True) -> None:
        super().__init__()
        if dim < 6 or dim % len(KERNELS):
            raise ValueError(f"dim must be a multiple of {len(KERNELS)}, at least 6, got {dim}; 24 is the default")
        self.visible, self.infrared = (
            nn.Sequential(*(_Sizes(dim if i else 1, dim) for i in range(depth))) for _ in range(2)
        )
        self.attention = _Attention(2 * dim) if attention else nn.Identity()
        last = nn.Conv2d(dim // 2, 1, 3, padding=1)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(cast("Tensor", last.bias))
        self.decode = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 3, padding=1), nn.LeakyReLU(0.1),
            nn.Conv2d(dim, dim // 2, 3, padding=1), nn.LeakyReLU(0.1),
            last,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        visible, infrared = x.split(1, 1)
        features = torch.cat([self.visible(visible), self.infrared(infrared)], 1)
        out: Tensor = x.mean(1, keepdim=True) + self.decode(self.attention(features))
        return out


METHOD = Method(
    id=231,
    name="AMFusionNet",
    kind="model",
    summary="Fuses visible and infrared pictures by filters of three sizes and spatial and channel attention.",
    paper=Paper(
        "Fusion of Infrared and Visible Images based on Spatial-Channel Attentional Mechanism",
        "Q. Xu, Z. Chen",
        2023,
        "arXiv:2308.13672",
    ),
    models={"am_fusion": AMFusionNet},
    cases={"am_fusion": {"dim": 6, "depth": 1}},
)
