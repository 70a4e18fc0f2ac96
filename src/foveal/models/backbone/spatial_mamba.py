"""Spatial-Mamba: one scan, whose hidden states are mixed with their neighbours in the plane before they are read.

*Source*: C. Xiao, M. Li, Z. Zhang, D. Meng, L. Zhang, "Spatial-Mamba: Effective Visual State Space Models via
Structure-aware State Fusion", ICLR 2025 (arXiv:2410.15091), sections 4.1 and 4.2. A convolutional stem to a quarter of
the sides, four stages, each but the first begun by an inverted bottleneck of stride 2; every block is

    x = x + dw₃(x);  x = x + mixer(norm(x));  x = x + dw₃(x);  x = x + mlp(norm(x))

The mixer, with dw₃,d a depthwise 3×3 convolution of dilation d whose border repeats:

    [u, z] = W_in x;  u = silu(dw₃(u))                                (B, C, H, W) to two of (B, 2C, H, W)
    h = states of the scan of u in raster order
    h' = Σ_{d = 1, 3, 5} a_d dw₃,d(h)
    y_t = C_tᵀ h'_t + D ∘ u_t;  out = W_out (norm(y) ∘ silu(z))

*Differs from the paper*: nothing.
*Provenance*: written from the paper; the layers of the stem and between stages, the widths, the repeated border and how
parameters begin were looked up in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn

from foveal.models.backbone.vmamba import init_weights
from foveal.nn.conv_stem import ConvStem, halving
from foveal.nn.fused_states import FusedStates
from foveal.nn.pyramid import Pyramid
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "SpatialMamba",
    "StateFusion",
    "StructureAwareMixer",
    "spatial_mamba_base",
    "spatial_mamba_small",
    "spatial_mamba_tiny",
]

DILATIONS = (1, 3, 5)


class StateFusion(nn.Module):
    """Three dilated depthwise 3×3 convolutions, weighted and summed, (B, C, H, W) to the same.

    After training they run as one 11×11 convolution: it multiplies more, zeros too, and takes a third of the time.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.ones(len(DILATIONS), channels, 1, 3, 3))
        self.alpha = nn.Parameter(torch.ones(len(DILATIONS)))
        self.as_one = True

    def forward(self, h: Tensor) -> Tensor:
        most = max(DILATIONS)
        wide = F.pad(h, (most,) * 4, mode="replicate")
        kernels = self.alpha[:, None, None, None, None] * self.kernels
        if self.as_one and not self.training:
            whole = kernels.new_zeros(h.shape[1], 1, 2 * most + 1, 2 * most + 1)
            for kernel, dilation in zip(kernels, DILATIONS, strict=True):
                taps = slice(most - dilation, most + dilation + 1, dilation)
                whole[:, :, taps, taps] += kernel
            return F.conv2d(wide, whole, groups=h.shape[1])
        found = []
        for kernel, dilation in zip(kernels, DILATIONS, strict=True):
            cut = most - dilation
            part = wide[:, :, cut : wide.shape[2] - cut, cut : wide.shape[3] - cut]
            found.append(F.conv2d(part, kernel, dilation=dilation, groups=h.shape[1]))
        return found[0] + found[1] + found[2]

    def make_identity_(self) -> None:
        """Make it pass on what it gets: the mixer is then a plain scan."""
        with torch.no_grad():
            self.kernels.zero_()[0, :, 0, 1, 1] = 1
            self.alpha.fill_(1)


class StructureAwareMixer(nn.Module):
    """A gated scan with fused states, (B, C, H, W) to the same.

    Args:
        dim: C.
        state: D, numbers that each scanned channel remembers.
        expand: scanned channels over C.
    """

    def __init__(self, dim: int, *, state: int = 1, expand: int = 2) -> None:
        super().__init__()
        inner = expand * dim
        self.in_proj = nn.Conv2d(dim, 2 * inner, 1, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.ssm = FusedStates(inner, state=state, dt_rank=-(-dim // 16))
        self.fusion = StateFusion(state * inner)
        self.norm = LayerNorm2d(inner, eps=1e-5)
        self.out_proj = nn.Conv2d(inner, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=1)
        y = self.ssm(F.silu(self.conv(u)), self.fusion)
        return self.out_proj(self.norm(y) * F.silu(z))


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.local1, self.local2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.norm1, self.norm2 = (LayerNorm2d(dim, eps=1e-5) for _ in range(2))
        self.mixer = mixer
        self.mlp = Mlp(dim, int(mlp_ratio * dim), use_conv=True)
        self.drop_path = DropPath(drop_path)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local1(x)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.local2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SpatialMamba(Pyramid):
    """Picture classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        state: D of the scans.
        mlp_ratio: hidden channels over a block's.
        mixer: makes a block's mixer from its channels; None takes `StructureAwareMixer`.
        in_channels: of the picture.
        num_classes: 0 gives pooled features.
        drop_path: probability of dropping a branch of the last block; it rises to that from 0.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        depths: Sequence[int] = (2, 4, 8, 4),
        state: int = 1,
        mlp_ratio: float = 4.0,
        mixer: Callable[[int], nn.Module] | None = None,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        dims = [dim * 2**i for i in range(len(depths))]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        make = mixer or (lambda width: StructureAwareMixer(width, state=state))
        stages = [
            nn.Sequential(
                *([halving(dims[i - 1], dims[i])] if i else []),
                *(_Block(dims[i], make(dims[i]), mlp_ratio=mlp_ratio, drop_path=next(drops)) for _ in range(depth)),
            )
            for i, depth in enumerate(depths)
        ]
        super().__init__(
            ConvStem(in_channels, dim),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        self.head.apply(init_weights)


def spatial_mamba_tiny(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 64,
    depths: Sequence[int] = (2, 4, 8, 4),
    state: int = 1,
) -> SpatialMamba:
    """Spatial-Mamba-T, 27 M parameters; trained with `drop_path` 0.2.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.
        state: D of the scans.

    Returns:
        The network.
    """
    return SpatialMamba(
        dim=dim, depths=depths, state=state, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


def spatial_mamba_small(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 64,
    depths: Sequence[int] = (2, 4, 21, 5),
    state: int = 1,
) -> SpatialMamba:
    """Spatial-Mamba-S, 43 M parameters; trained with `drop_path` 0.3.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.
        state: D of the scans.

    Returns:
        The network.
    """
    return SpatialMamba(
        dim=dim, depths=depths, state=state, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


def spatial_mamba_base(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 96,
    depths: Sequence[int] = (2, 4, 21, 5),
    state: int = 1,
) -> SpatialMamba:
    """Spatial-Mamba-B, 96 M parameters; trained with `drop_path` 0.5.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.
        state: D of the scans.

    Returns:
        The network.
    """
    return SpatialMamba(
        dim=dim, depths=depths, state=state, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


_TINY = {"dim": 8, "depths": (1, 1), "num_classes": 5}

METHOD = Method(
    id=291,
    name="Spatial-Mamba",
    kind="model",
    summary="One scan over the picture whose states are mixed by dilated convolutions before they are read.",
    paper=Paper(
        "Spatial-Mamba: Effective Visual State Space Models via Structure-aware State Fusion",
        "C. Xiao et al.",
        2025,
        "arXiv:2410.15091",
    ),
    models={
        "spatial_mamba_tiny": spatial_mamba_tiny,
        "spatial_mamba_small": spatial_mamba_small,
        "spatial_mamba_base": spatial_mamba_base,
    },
    cases={
        "spatial_mamba_tiny": _TINY,
        "spatial_mamba_small": {**_TINY, "state": 2},
        "spatial_mamba_base": {**_TINY, "in_channels": 1, "drop_path": 0.1},
    },
)
