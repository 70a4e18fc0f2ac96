"""Rev-MBConv-UNet: a U-Net for volumes whose stages are reversible mobile inverted bottlenecks.

*Source*: M. Pendse, V. Thangarasa et al., "Memory Efficient 3D U-Net with Reversible Mobile Inverted Bottlenecks for
Brain Tumor Segmentation", BrainLes 2020 (arXiv:2104.09648); the bottleneck is that of M. Sandler et al., "MobileNetV2",
2018 (arXiv:1801.04381), table 1. Volumes, (B, C, D, H, W), are split into halves of their channels, C / 2:

    y₁ = x₁ + F(x₂),  y₂ = x₂ + G(y₁)                                 `foveal.nn.reversible`
    F, G = project₁ ∘ depthwise₃ ∘ expand₁                            C / 2 to t C / 2 to C / 2 channels

with a group norm after each convolution and an activation after the first two. Level i has C · 2^i channels at sides
2^i times smaller: a convolution of stride 2 leads down, a transposed one up, where the way down's output is put beside
and both are mixed by a 1×1×1 convolution. Training keeps one volume of a stage, whatever the number of its blocks.

*Differs from the paper*: only its abstract was at hand, so the sizes are foveal's own (5 levels of 2 blocks, t = 6),
and so are SiLU, group norms, and the layers between the stages. Sides that 2^(levels - 1) does not divide are padded
with zeros and cropped. `axes=2` builds the same for pictures.
*Provenance*: written from the abstract and the paper of MobileNetV2; there is no code of the authors'.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.reversible import Reversible
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["InvertedBottleneck", "RevMBConvUNet", "rev_mbconv_unet", "stage"]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class InvertedBottleneck(nn.Module):
    """(B, C, …) to the same, without a shortcut.

    Args:
        dim: C.
        expansion: t, channels inside over those outside.
        axes: 3 for volumes, 2 for pictures.
        groups: groups of each norm; fewer where they do not divide the channels.
    """

    def __init__(self, dim: int, *, expansion: int = 6, axes: int = 3, groups: int = 8) -> None:
        super().__init__()
        conv, inner = _CONV[axes], expansion * dim
        self.expand = conv(dim, inner, 1, bias=False)
        self.norm1 = _norm(inner, groups)
        self.depthwise = conv(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm2 = _norm(inner, groups)
        self.project = conv(inner, dim, 1, bias=False)
        self.norm3 = _norm(dim, groups)

    def forward(self, x: Tensor) -> Tensor:
        # (B, t C, …) between the first and the last
        x = F.silu(self.norm1(self.expand(x)))
        x = F.silu(self.norm2(self.depthwise(x)))
        y: Tensor = self.norm3(self.project(x))
        return y


def _norm(dim: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(n for n in range(1, groups + 1) if dim % n == 0), dim)


def stage(dim: int, depth: int, *, expansion: int = 6, axes: int = 3, store: bool = False) -> Reversible:
    """Reversible blocks of one level, (B, C, …) to the same.

    Args:
        dim: C, even.
        depth: number of blocks.
        expansion: t.
        axes: 3 for volumes, 2 for pictures.
        store: whether to keep all activations.

    Returns:
        The stage.
    """
    make = partial(InvertedBottleneck, dim // 2, expansion=expansion, axes=axes)
    return Reversible([(make(), make()) for _ in range(depth)], store=store)


class RevMBConvUNet(nn.Module):
    """Segmentation network, (B, in_channels, D, H, W) to (B, num_classes, D, H, W), logits.

    Args:
        dim: C, channels of the first level, even.
        depths: blocks of a stage, on the way down and on the way up, from the first level to the last.
        expansion: t.
        in_channels: channels of the volume, four kinds of scans in BraTS.
        num_classes: classes, three regions of a tumor in BraTS.
        axes: 3 for volumes, 2 for pictures.
        store: whether to keep all activations, which gives the plain network of the same function.

    Raises:
        ValueError: an odd number of channels, or other axes.
    """

    def __init__(
        self,
        *,
        dim: int = 32,
        depths: Sequence[int] = (2, 2, 2, 2, 2),
        expansion: int = 6,
        in_channels: int = 4,
        num_classes: int = 3,
        axes: int = 3,
        store: bool = False,
    ) -> None:
        super().__init__()
        if axes not in _CONV:
            raise ValueError(f"axes must be 2 for pictures or 3 for volumes, got {axes}")
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}; each half of the channels changes the other")
        conv, up = _CONV[axes], _UP[axes]
        self.scale, self.out_channels, self.multiple = 1, num_classes, 2 ** (len(depths) - 1)
        make = partial(stage, expansion=expansion, axes=axes, store=store)
        dims = [dim * 2**i for i in range(len(depths))]
        self.stem = conv(in_channels, dim, 3, padding=1)
        self.down = nn.ModuleList(conv(wide // 2, wide, 2, stride=2) for wide in dims[1:])
        self.encoder = nn.ModuleList(map(make, dims, depths))
        self.up = nn.ModuleList(up(wide, wide // 2, 2, stride=2) for wide in dims[1:])
        self.mix = nn.ModuleList(conv(2 * wide, wide, 1) for wide in dims[:-1])
        self.decoder = nn.ModuleList(map(make, dims[:-1], depths[:-1]))
        self.head = conv(dim, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        sides = x.shape[2:]
        x = self.stem(F.pad(x, [n for side in reversed(sides) for n in (0, -side % self.multiple)]))
        x, skips = self.encoder[0](x), []
        for down, blocks in zip(self.down, self.encoder[1:], strict=True):  # type: ignore[arg-type]
            skips.append(x)
            x = blocks(down(x))
        levels = list(zip(self.up, self.mix, self.decoder, strict=True))
        for up, mix, blocks in reversed(levels):
            x = blocks(mix(torch.cat([up(x), skips.pop()], 1)))
        y: Tensor = self.head(x)
        return y[tuple(slice(side) for side in (None, None, *sides))]


rev_mbconv_unet = RevMBConvUNet

METHOD = Method(
    id=323,
    name="Rev-MBConv-UNet",
    kind="model",
    summary="A U-Net for volumes recovers inputs of its mobile bottlenecks from outputs in place of keeping them.",
    paper=Paper(
        "Memory Efficient 3D U-Net with Reversible Mobile Inverted Bottlenecks for Brain Tumor Segmentation",
        "M. Pendse et al.",
        2021,
        "arXiv:2104.09648",
    ),
    models={"rev_mbconv_unet": rev_mbconv_unet},
    cases={"rev_mbconv_unet": {"dim": 4, "depths": (1, 1), "expansion": 2, "in_channels": 2, "axes": 2}},
)
