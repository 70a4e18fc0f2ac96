"""EfficientVMamba: each route takes every second token per axis, so that four scans together see each token once.

*Source*: X. Pei, T. Huang and C. Xu, "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", AAAI 2025
(arXiv:2403.09977), sections 4.1 to 4.3. The efficient scan (ES2D) splits a map into the four maps of even and odd rows
and columns, each scanned in one direction:

    x_k = x[r::2, c::2], (r, c) = (0, 0), (1, 0), (0, 1), (1, 1)               (B, C, H, W) to (B, 4, C, HW/4)
    y[r::2, c::2] = selective scan of x_k; rows for the first and third, columns for the others

The blocks of the first two stages have this scan and convolutions in parallel, each gated by the same squeeze and
excitation (SE); the last two stages have inverted residuals:

    x + SE(ES2D(norm(x))) + SE(conv₁(gelu(bn(dwconv₃(norm(x))))))

*Differs from the paper*: nothing. The routes, the norm inside SE and the sharing of SE are as in the authors' code.
*Provenance*: written from the paper; sizes and order of operations were looked up in the authors' code. With its
weights, converted by `from_authors`, the logits agree with its own to 1e-6 of the largest.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, SqueezeExcite
from torch import Tensor, nn

from foveal.models.backbone.vmamba import init_weights
from foveal.nn.patch_merging import PatchMerging
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.ss2d import SS2D
from foveal.nn.vmamba_names import S6_NAMES, as_convolutions
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ES2D",
    "EVSSBlock",
    "EfficientVMamba",
    "InvertedResidual",
    "atrous_gather",
    "atrous_scatter",
    "efficientvmamba_base",
    "efficientvmamba_small",
    "efficientvmamba_tiny",
    "from_authors",
]


def atrous_gather(x: Tensor) -> Tensor:
    """Split a map into four sequences of every second token per axis.

    Args:
        x: features, (B, C, H, W); odd sides are padded with zeros.

    Returns:
        (B, 4, C, ⌈H/2⌉·⌈W/2⌉): even rows and columns, by rows; odd rows and even columns, by columns; even rows and odd
        columns, by rows; odd rows and columns, by columns.
    """
    height, width = x.shape[2:]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    # (B, C, ⌈H/2⌉, 2, ⌈W/2⌉, 2)
    pairs = F.pad(x, (0, 2 * columns - width, 0, 2 * rows - height)).unflatten(3, (columns, 2)).unflatten(2, (rows, 2))
    (even, right), (down, odd) = (row.unbind(4) for row in pairs.unbind(3))
    return torch.stack([even.flatten(2), down.mT.flatten(2), right.flatten(2), odd.mT.flatten(2)], 1)


def atrous_scatter(y: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `atrous_gather`.

    Args:
        y: sequences, (B, 4, C, ⌈H/2⌉·⌈W/2⌉).
        height: H.
        width: W.

    Returns:
        (B, C, H, W).
    """
    rows, columns = (height + 1) // 2, (width + 1) // 2
    even, down, right, odd = y.unbind(1)
    even, right = even.unflatten(2, (rows, columns)), right.unflatten(2, (rows, columns))
    down, odd = down.unflatten(2, (columns, rows)).mT, odd.unflatten(2, (columns, rows)).mT
    # (B, C, 4, H/2, W/2) to (B, C, H, W)
    return F.pixel_shuffle(torch.stack([even, right, down, odd], 2).flatten(1, 2), 2)[..., :height, :width]


class ES2D(SS2D):
    """The mixer: SS2D with the tokens split among the four routes. Takes the arguments of `SS2D`."""

    def scan(self, x: Tensor) -> Tensor:
        """Scan each token once.

        Args:
            x: features, (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        return atrous_scatter(self.s6(atrous_gather(x)), x.shape[2], x.shape[3])


class _Excite(nn.Module):
    """Squeeze and excitation over normalised channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.reduce = nn.Conv2d(dim, max(1, dim // 8), 1)
        self.expand = nn.Conv2d(max(1, dim // 8), dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.norm(x).mean((2, 3), keepdim=True)
        return x * self.expand(F.gelu(self.reduce(squeezed))).sigmoid()


class EVSSBlock(nn.Module):
    """Scan and convolution in parallel, (B, C, H, W) to the same.

    Args:
        dim: C.
        state: D, state size of the scan.
        drop_path: drop-path rate of the two branches.
    """

    def __init__(self, dim: int, *, state: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.mixer = ES2D(dim, state=state)
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.BatchNorm2d(dim), nn.GELU(), nn.Conv2d(dim, dim, 1)
        )
        self.excite = _Excite(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.drop_path(self.excite(self.mixer(normed)) + self.excite(self.conv(normed)))


class InvertedResidual(nn.Module):
    """1×1 to four times the channels, depthwise 3×3, squeeze and excitation, 1×1 back; (B, C, H, W) to the same.

    Args:
        dim: C.
        drop_path: drop-path rate of the branch.
    """

    def __init__(self, dim: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = 4 * dim
        self.branch = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            SqueezeExcite(hidden, rd_channels=max(1, hidden // 8)),
            nn.Conv2d(hidden, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))


class EfficientVMamba(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes).

    Args:
        dim: number of channels of the first stage; each further stage doubles it.
        depths: blocks of each of the four stages.
        state: D, state size of the scans.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        depths: Sequence[int] = (2, 2, 9, 2),
        state: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        dims = [dim * 2**i for i in range(len(depths))]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, depth in enumerate(depths):
            merging: list[nn.Module] = [PatchMerging(dims[i - 1], dims[i])] if i else []
            blocks = [
                EVSSBlock(dims[i], state=state, drop_path=next(drops))
                if i < 2
                else InvertedResidual(dims[i], drop_path=next(drops))
                for _ in range(depth)
            ]
            stages.append(nn.Sequential(*merging, *blocks))
        super().__init__(
            nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), LayerNorm2d(dim, eps=1e-5)),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        self.apply(init_weights)


# All trained with `drop_path` 0.2.
efficientvmamba_tiny = partial(EfficientVMamba, dim=48, depths=(2, 2, 4, 2))  # EfficientVMamba-T, 6 M parameters
efficientvmamba_small = partial(EfficientVMamba, dim=64, depths=(2, 2, 4, 2))  # EfficientVMamba-S, 11 M
efficientvmamba_base = partial(EfficientVMamba, dim=96, depths=(2, 2, 9, 2))  # EfficientVMamba-B, 33 M


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names and shapes.

    Args:
        state_dict: name → tensor, the entry "state_dict" of their files.

    Returns:
        State dict of `efficientvmamba_tiny`, `efficientvmamba_small` or `efficientvmamba_base`.
    """
    found = renamed(
        state_dict,
        [
            (r"^(module\.)+", ""),
            (r"^patch_embed\.(\d)", lambda at: f"stem.{int(at[1]) // 2}"),
            (r"^classifier\.", ""),
            # their stages end with the patch merging, ours begin with it
            (r"^layers\.(\d+)\.(?:downsample|\d+)\.(norm|reduction)", lambda at: f"stages.{int(at[1]) + 1}.0.{at[2]}"),
            (r"^layers\.(\d+)\.blocks\.(\d+)", lambda at: f"stages.{at[1]}.{int(at[2]) + (at[1] != '0')}"),
            # their inverted residuals follow a permutation of axes
            (r"^layers\.", "stages."),
            (r"\.op\.", ".mixer."),
            (r"\.conv_branch\.", ".conv."),
            (r"\.conv_pw\.", ".branch."),
            (r"\.conv_dw\.(\d)", lambda at: f".branch.{int(at[1]) + 3}"),
            (r"\.se\.conv_reduce\.", ".branch.6.fc1."),
            (r"\.se\.conv_expand\.", ".branch.6.fc2."),
            (r"\.conv_pw2\.(\d)", lambda at: f".branch.{int(at[1]) + 7}"),
            (r"\.se\.global_reduce\.", ".excite.reduce."),
            (r"\.se\.channel_select\.", ".excite.expand."),
            (r"\.se\.", ".excite."),
            *S6_NAMES,
        ],
    )
    return as_convolutions(found)


_TINY = {"dim": 8, "depths": (1, 1, 1, 1), "state": 2, "num_classes": 5}

METHOD = Method(
    id=277,
    name="EfficientVMamba",
    kind="model",
    summary="Four scans of every second token in place of four scans of all, beside convolutions.",
    paper=Paper(
        "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
        "X. Pei, T. Huang and C. Xu",
        2024,
        "arXiv:2403.09977",
    ),
    models={
        "efficientvmamba_tiny": efficientvmamba_tiny,
        "efficientvmamba_small": efficientvmamba_small,
        "efficientvmamba_base": efficientvmamba_base,
    },
    cases={
        "efficientvmamba_tiny": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "efficientvmamba_small": _TINY,
        "efficientvmamba_base": _TINY,
    },
)
