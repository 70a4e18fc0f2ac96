"""VAN: a convolutional backbone whose blocks multiply the map by a gate that sees 23×23 pixels.

*Source*: M.-H. Guo et al., "Visual Attention Network", Computational Visual Media 2023 (arXiv:2202.09741), sections
3.1 and 3.2. A large kernel is taken apart into a small one, a dilated one and a 1×1 convolution, and what comes out is
not the next map but a gate for each pixel and channel (large kernel attention, LKA), for x: (B, C, H, W)

    lka(x) = x ⊙ (W (D * (L * x)))      L: (C, 5, 5) and D: (C, 7, 7) with dilation 3, depthwise; W: (C, C)

Together L and D are one 23×23 kernel per channel, with 74 weights instead of the 441 of the 21×21 kernel that they
stand for. Four stages, each after a strided convolution, of blocks

    x = x + γ₁ attention(norm x)        attention(y) = y + W₂ lka(gelu(W₁ y))
    x = x + γ₂ mlp(norm x)              mlp(y) = W₄ gelu(dw₃(W₃ y))

*Differs from the paper*: `stand_in`, which puts the gate in the place of a trained convolution, is foveal's own.

*Provenance*: written from the paper; the inner skip of the attention, the start of γ at 0.01 and of the weights were
looked up in the authors' code. B0 and B1 equal that code to 2e-7 under shared weights at 64×96.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.same_size import keeps_size
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "LKA",
    "VAN",
    "LargeKernelAttention",
    "from_authors",
    "lka_kernel",
    "stand_in",
    "van_b0",
    "van_b1",
    "van_b2",
    "van_b3",
]

SMALL, LARGE, DILATION = 5, 7, 3  # 2·3 - 1 and ⌈21 / 3⌉ for a kernel of 21


def lka_kernel(small: Tensor, large: Tensor, *, dilation: int = DILATION) -> Tensor:
    """The one kernel that a small and a dilated depthwise convolution are, away from the borders.

    Args:
        small: L, (C, 1, k, k).
        large: D, (C, 1, m, m).
        dilation: d, of the second.

    Returns:
        (C, 1, s, s) with s = k + d·(m - 1).
    """
    channels, reach = len(small), dilation * (large.shape[-1] - 1)
    # a correlation with L and then with D is one with the convolution of D, spread, and L
    spread = large.new_zeros(1, channels, reach + 1, reach + 1)
    spread[..., ::dilation, ::dilation] = large[:, 0]
    return F.conv2d(spread, small.flip(2, 3), padding=small.shape[-1] - 1, groups=channels)[0][:, None]


class LKA(nn.Module):
    """Large kernel attention: the gate and what it multiplies, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.small = nn.Conv2d(dim, dim, SMALL, padding=SMALL // 2, groups=dim)
        reach = DILATION * (LARGE // 2)
        self.large = nn.Conv2d(dim, dim, LARGE, padding=reach, dilation=DILATION, groups=dim)
        self.pointwise = nn.Conv2d(dim, dim, 1)

    def gate(self, x: Tensor) -> Tensor:
        """What the map is multiplied by.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, H, W), of any sign.
        """
        return self.pointwise(self.large(self.small(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class LargeKernelAttention(nn.Module):
    """The gate between two 1×1 convolutions, with a skip, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1, self.lka, self.proj2 = nn.Conv2d(dim, dim, 1), LKA(dim), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj2(self.lka(F.gelu(self.proj1(x))))


class _Mlp(nn.Module):
    """(B, C, H, W) to the same, with a depthwise 3×3 convolution between the layers."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.local(self.fc1(x))))


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.BatchNorm2d(dim), LargeKernelAttention(dim)
        self.norm2, self.mlp = nn.BatchNorm2d(dim), _Mlp(dim, int(dim * mlp_ratio))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 1e-2)) for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.scale2[:, None, None] * self.mlp(self.norm2(x)))


def _embed(in_channels: int, dim: int, kernel_size: int, stride: int) -> nn.Sequential:
    """Overlapping patches, (B, in_channels, H, W) to (B, dim, ⌈H / stride⌉, ⌈W / stride⌉)."""
    conv = nn.Conv2d(in_channels, dim, kernel_size, stride, kernel_size // 2)
    return nn.Sequential(OrderedDict(proj=conv, norm=nn.BatchNorm2d(dim)))


class VAN(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage.
        depths: number of blocks of each stage.
        mlp_ratios: hidden channels of each stage's MLPs over its channels.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: if `dims`, `depths` and `mlp_ratios` differ in length.
    """

    def __init__(
        self,
        dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (3, 3, 5, 2),
        *,
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        if not len(dims) == len(depths) == len(mlp_ratios):
            raise ValueError(
                "dims, depths and mlp_ratios must have the same length, got "
                f"{len(dims)}, {len(depths)} and {len(mlp_ratios)}"
            )
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, mlp_ratios, strict=True)):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            if i:
                parts["down"] = _embed(dims[i - 1], dim, 3, 2)
            parts["blocks"] = nn.Sequential(*(_Block(dim, ratio, next(drops)) for _ in range(depth)))
            if i < len(dims) - 1:
                parts["norm"] = LayerNorm2d(dim)
            stages.append(nn.Sequential(parts))
        super().__init__(
            _embed(in_channels, dims[0], 7, 4),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1]),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:  # noqa: ARG001 - a stand-in's signature
    """A gate and a 1×1 convolution in the place of a convolution; equal to it on flat pictures, away from the borders.

    The gate starts at 1 and the 1×1 convolution as the sum of the kernel's taps.

    Args:
        layer: convolution of stride 1 that keeps height and width, dense, grouped or depthwise.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"lka stands in for a convolution, got {layer}")
    if not keeps_size(layer):
        raise ValueError("lka keeps height and width: it needs stride 1 and full padding")
    gate = LKA(layer.in_channels)
    nn.init.zeros_(gate.pointwise.weight)
    if gate.pointwise.bias is not None:
        nn.init.ones_(gate.pointwise.bias)
    sums = nn.Conv2d(layer.in_channels, layer.out_channels, 1, groups=layer.groups, bias=layer.bias is not None)
    sums.weight.copy_(layer.weight.sum((2, 3), keepdim=True))
    if layer.bias is not None and sums.bias is not None:
        sums.bias.copy_(layer.bias)
    return nn.Sequential(gate, sums)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, the entry "state_dict" of their files.

    Returns:
        State dict of `van_b0`, `van_b1`, `van_b2` or `van_b3`.
    """
    return renamed(
        state_dict,
        [
            (r"^patch_embed1\.", "stem."),
            (r"^patch_embed(\d)\.", lambda at: f"stages.{int(at[1]) - 1}.down."),
            (r"^block(\d)\.", lambda at: f"stages.{int(at[1]) - 1}.blocks."),
            (r"^norm4\.", "norm."),
            (r"^norm(\d)\.", lambda at: f"stages.{int(at[1]) - 1}.norm."),
            (r"\.layer_scale_(\d)$", r".scale\1"),
            (r"\.proj_(\d)\.", r".proj\1."),
            (r"\.spatial_gating_unit\.", ".lka."),
            (r"\.conv0\.", ".small."),
            (r"\.conv_spatial\.", ".large."),
            (r"\.conv1\.", ".pointwise."),
            (r"\.dwconv\.dwconv\.", ".local."),
        ],
    )


_WIDE = (64, 128, 320, 512)
van_b0 = VAN  # VAN-B0: 4.1 M parameters, 0.9 G multiply-adds at 224×224
van_b1 = partial(VAN, dims=_WIDE, depths=(2, 2, 4, 2))  # VAN-B1: 13.9 M, 2.5 G
van_b2 = partial(VAN, dims=_WIDE, depths=(3, 3, 12, 3))  # VAN-B2: 26.6 M, 5.0 G
van_b3 = partial(VAN, dims=_WIDE, depths=(3, 5, 27, 3))  # VAN-B3: 44.8 M, 9.0 G

_TINY = {"dims": (4, 8), "depths": (1, 1), "mlp_ratios": (2, 2), "num_classes": 3}

METHOD = Method(
    id=168,
    name="VAN",
    kind="model",
    summary="A large kernel, taken apart into a small, a dilated and a 1×1 one, gates the map.",
    paper=Paper("Visual Attention Network", "M.-H. Guo et al.", 2023, "arXiv:2202.09741"),
    models={"van_b0": van_b0, "van_b1": van_b1, "van_b2": van_b2, "van_b3": van_b3},
    cases={
        "van_b0": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "van_b1": _TINY,
        "van_b2": _TINY,
        "van_b3": _TINY,
    },
)
