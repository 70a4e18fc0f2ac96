"""Spatial-Mamba: one scan, whose hidden states are mixed with their spatial neighbours before they are read out.

*Source*: C. Xiao, M. Li, Z. Zhang, D. Meng, L. Zhang, "Spatial-Mamba: Effective Visual State Space Models via
Structure-aware State Fusion", ICLR 2025 (arXiv:2410.15091), sections 4.1 and 4.2. A convolutional stem of stride 4,
then four stages, of which all but the first begin with an inverted bottleneck of stride 2; every block is

    x = x + dw₃(x);  x = x + mixer(norm(x));  x = x + dw₃(x);  x = x + mlp(norm(x))

The mixer, with dw₃,d a depthwise 3×3 convolution of dilation d with replicate padding:

    [u, z] = W_in x;  u = silu(dw₃(u))                                (B, C, H, W) to two of (B, 2C, H, W)
    h = states of the scan of u in raster order
    h' = Σ_{d = 1, 3, 5} a_d dw₃,d(h)
    y_t = C_tᵀ h'_t + D ∘ u_t;  out = W_out (norm(y) ∘ silu(z))

*Differs from the paper*: nothing.
*Provenance*: written from the paper; the layers of the stem and between stages, the widths, the padding and the initial
values were looked up in the authors' code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn

from foveal.models.backbone.vmamba import init_weights
from foveal.nn.conv_stem import ConvStem, halving
from foveal.nn.fused_states import FusedStates
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "SpatialMamba",
    "StateFusion",
    "StructureAwareMixer",
    "from_authors",
    "repeat_border",
    "spatial_mamba_base",
    "spatial_mamba_small",
    "spatial_mamba_tiny",
]

DILATIONS = (1, 3, 5)


def repeat_border(x: Tensor, margin: int) -> Tensor:
    """Pad a map by replicating its border.

    `F.pad` does this too, but its gradient fails in networks compiled with `torch.compile`.

    Args:
        x: features, (B, C, H, W).
        margin: m, width of the padding on each side.

    Returns:
        (B, C, H + 2m, W + 2m).
    """
    top, bottom = (row.expand(-1, -1, margin, -1) for row in (x[:, :, :1], x[:, :, -1:]))
    x = torch.cat((top, x, bottom), 2)
    left, right = (column.expand(-1, -1, -1, margin) for column in (x[..., :1], x[..., -1:]))
    return torch.cat((left, x, right), 3)


class StateFusion(nn.Module):
    """Three dilated depthwise 3×3 convolutions, weighted and summed, (B, C, H, W) to the same.

    In eval mode they run as one 11×11 convolution, which multiplies more (also by zeros) but takes a third of the time.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(torch.ones(channels, 1, 3, 3) for _ in DILATIONS)
        self.alpha = nn.Parameter(torch.ones(len(DILATIONS)))
        self.as_one = True

    def forward(self, h: Tensor) -> Tensor:
        most = max(DILATIONS)
        wide = repeat_border(h, most)
        kernels = [alpha * kernel for alpha, kernel in zip(self.alpha, self.kernels, strict=True)]
        if self.as_one and not self.training:
            whole = kernels[0].new_zeros(h.shape[1], 1, 2 * most + 1, 2 * most + 1)
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
        """Turn it into the identity, so that the mixer is a plain scan."""
        with torch.no_grad():
            for kernel in self.kernels:
                kernel.zero_()
            self.kernels[0][:, :, 1, 1] = 1
            self.alpha.fill_(1)


class StructureAwareMixer(nn.Module):
    """A gated scan with fused states, (B, C, H, W) to the same.

    Args:
        dim: C.
        state: D, state size per scanned channel.
        expand: ratio of scanned channels to C.
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
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dim: number of channels of the first stage; each further stage doubles it.
        depths: number of blocks of each stage.
        state: D, state size of the scans.
        mlp_ratio: ratio of hidden channels to a block's channels.
        mixer: function that builds a block's mixer from its number of channels; None for `StructureAwareMixer`.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
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


spatial_mamba_tiny = SpatialMamba  # Spatial-Mamba-T, 27 M parameters, trained with `drop_path` 0.2
spatial_mamba_small = partial(SpatialMamba, depths=(2, 4, 21, 5))  # Spatial-Mamba-S, 43 M, trained with 0.3
spatial_mamba_base = partial(SpatialMamba, dim=96, depths=(2, 4, 21, 5))  # Spatial-Mamba-B, 96 M, trained with 0.5


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names and shapes.

    Args:
        state_dict: name → tensor, the entry "model" of their files.

    Returns:
        State dict of `spatial_mamba_tiny`, `spatial_mamba_small` or `spatial_mamba_base`.
    """
    found = renamed(
        state_dict,
        [
            (r"^patch_embed\.conv1\.", "stem.first."),
            (r"^patch_embed\.conv2\.", "stem.middle."),
            (r"^patch_embed\.conv3\.", "stem.last."),
            # their stages end with the downsampling, ours begin with it
            (r"^layers\.(\d+)\.blocks\.(\d+)", lambda at: f"stages.{at[1]}.{int(at[2]) + (at[1] != '0')}"),
            (r"^layers\.(\d+)\.downsample\.conv\.2\.norm", lambda at: f"stages.{int(at[1]) + 1}.0.5"),
            (
                r"^layers\.(\d+)\.downsample\.conv\.(\d)\.conv",
                lambda at: f"stages.{int(at[1]) + 1}.0.{2 * int(at[2])}",
            ),
            (r"^(stem\..*)\.conv\.", r"\1.0."),
            (r"^(stem\..*)\.norm\.", r"\1.1."),
            (r"\.cpe(\d)\.", r".local\1."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.", ".mixer."),
            (r"\.conv2d\.", ".conv."),
            (r"\.out_norm\.", ".norm."),
            (r"\.state_fusion\.kernel_3(_1|_2)?$", lambda at: f".fusion.kernels.{(at[1] or '_0')[1]}"),
            (r"\.state_fusion\.", ".fusion."),
            (r"\.x_proj_weight$", ".ssm.s6.x_proj"),
            (r"\.dt_projs_weight$", ".ssm.s6.dt_proj"),
            (r"\.dt_projs_bias$", ".ssm.s6.dt_bias"),
            (r"\.A_logs$", ".ssm.s6.A_log"),
            (r"\.Ds$", ".ssm.s6.D"),
        ],
    )
    for name, value in found.items():
        if name.endswith((".x_proj", ".dt_proj")):
            found[name] = value[None]  # a single route
        elif name.endswith(("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")):
            found[name] = value[..., None, None]  # linear layers become 1×1 convolutions
    return found


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
        "spatial_mamba_tiny": {**_TINY, "state": 2, "in_channels": 1, "drop_path": 0.1},
        "spatial_mamba_small": _TINY,
        "spatial_mamba_base": _TINY,
    },
)
