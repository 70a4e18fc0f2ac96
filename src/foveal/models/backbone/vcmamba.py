"""VCMamba: convolutions on the large feature maps, snaking scans on the last and smallest.

*Source*: M. Munir, A. Zhang, R. Marculescu, "VCMamba: Bridging Convolutions with Multi-Directional Mamba for Efficient
Visual Representation", ICCV Workshops 2025 (arXiv:2509.04669), section 3.

    stem: two 3×3 convolutions, each halving the map
    convolutional block: x + γ ∘ ffn(x),  ffn = 1×1 to 4·C, depthwise 3×3, 1×1 back, a batch norm after each
    between stages: 3×3 convolution that halves the map and adds channels
    last stage, after its convolutional blocks and + positions:
        x + mixer(bn(x)),  x + ffn(bn(x))
        mixer(x) = W_out relu(norm(four scans of silu(dwconv₇ₓ₇(W_in x))))      `foveal.nn.snake`

The head is two linear layers on the mean, one trained on labels and one on a teacher; their logits are averaged.

The mixer has no gate. The scans visit 1/1024 of the image's positions; the rest has the cost of convolutions.

*Differs from the paper*: step sizes are initialised as in Mamba; position embeddings are resized to any image. The
authors' code computes the scans differently from the paper; `released=True` follows the code, see `foveal.nn.snake`.
*Provenance*: written from the paper; widths, depths, the order of norms and initial values were looked up in the
authors' code.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.snake import SnakeScan
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ConvBlock", "MambaBlock", "SnakeMixer", "VCMamba", "from_authors", "vcmamba_b", "vcmamba_m", "vcmamba_s"]


def _ffn(dim: int, hidden: int) -> nn.Sequential:
    widen, narrow = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
    for convolution in (widen, narrow):
        trunc_normal_(convolution.weight, std=0.02)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    across = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
    normed = [nn.BatchNorm2d(hidden), nn.BatchNorm2d(hidden), nn.BatchNorm2d(dim)]
    return nn.Sequential(widen, normed[0], nn.GELU(), across, normed[1], nn.GELU(), narrow, normed[2])


class ConvBlock(nn.Module):
    """Convolutional block, (B, dim, H, W) to the same.

    Args:
        dim: C.
        mlp_ratio: ratio of hidden channels to C.
        drop_path: drop-path rate of the branch.
        scale: initial value of γ.
    """

    def __init__(self, dim: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0, scale: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim, 1, 1), scale))
        self.ffn = _ffn(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.gamma * self.ffn(x))


class SnakeMixer(nn.Module):
    """Four scans of a feature map between convolutions, without a gate; (B, dim, H, W) to the same.

    Args:
        dim: C.
        state: D, state size per scanned channel.
        expand: ratio of scanned channels to C.
        kernel_size: kernel size of the depthwise convolution before the scans, odd.
        released: whether to scan as the authors' code does, see `foveal.nn.snake.SnakeScan`.
    """

    def __init__(
        self, dim: int, *, state: int = 16, expand: float = 2.0, kernel_size: int = 7, released: bool = False
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.in_conv = nn.Sequential(nn.Conv2d(dim, inner, 1), nn.BatchNorm2d(inner))
        self.conv2d = nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner)
        self.scan = SnakeScan(inner, state=state, dt_rank=-(-dim // 16), released=released)
        self.norm = LayerNorm2d(inner, eps=1e-5)
        self.out_conv = nn.Sequential(nn.ReLU(), nn.Conv2d(inner, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.conv2d(self.in_conv(x)))
        return self.out_conv(self.norm(self.scan(u)))


class MambaBlock(nn.Module):
    """Scans, then a feed-forward network, each after a batch norm; (B, dim, H, W) to the same.

    Args:
        dim: C.
        state: D.
        mlp_ratio: ratio of hidden channels to C.
        drop_path: drop-path rate of the branches.
        released: whether to scan as the authors' code does, see `foveal.nn.snake.SnakeScan`.
    """

    def __init__(
        self, dim: int, *, state: int = 16, mlp_ratio: float = 4.0, drop_path: float = 0.0, released: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.mixer = SnakeMixer(dim, state=state, released=released)
        self.ffn = _ffn(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class _Positions(nn.Module):
    """Adds a learned position embedding, resized from an s×s map."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(1, dim, side, side))
        trunc_normal_(self.embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.embed, x.shape[2:], mode="bicubic", align_corners=False)


class VCMamba(Pyramid):
    """Three stages of convolutions and one that ends in scans, with timm's interface; see `Pyramid`.

    Args:
        dims: number of channels of each stage.
        depths: number of blocks of each stage.
        scanning: number of blocks of the last stage that scan.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
        state: D, state size of the scans.
        released: whether to scan as the authors' code does, see `foveal.nn.snake.SnakeScan`.
        distilled: whether there is a second classifier.
    """

    def __init__(
        self,
        dims: Sequence[int] = (32, 64, 144, 288),
        depths: Sequence[int] = (4, 4, 12, 8),
        *,
        scanning: int = 4,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        state: int = 16,
        released: bool = False,
        distilled: bool = True,
    ) -> None:
        drops = iter([drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        stages: list[nn.Module] = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            layers: list[nn.Module] = []
            if i:
                layers += [nn.Conv2d(dims[i - 1], dim, 3, stride=2, padding=1), nn.BatchNorm2d(dim)]
            scans = scanning if i == len(dims) - 1 else 0
            layers += [ConvBlock(dim, drop_path=next(drops)) for _ in range(depth - scans)]
            layers += [_Positions(dim, 7)] if scans else []
            layers += [
                MambaBlock(dim, state=state, drop_path=next(drops), released=released) for _ in range(min(scans, depth))
            ]
            stages.append(nn.Sequential(*layers))
        half = dims[0] // 2
        stem = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, stride=2, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, dims[0], 3, stride=2, padding=1),
            nn.BatchNorm2d(dims[0]),
            nn.ReLU(),
        )
        super().__init__(
            stem,
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        if distilled:
            self.heads = ("head", "head_dist")
        self.reset_classifier(num_classes)

    def make_classifier(self, num_classes: int) -> nn.Linear:
        """One classifier, begun near zero.

        Args:
            num_classes: at least 1.

        Returns:
            A linear layer.
        """
        head = super().make_classifier(num_classes)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def no_weight_decay(self) -> set[str]:
        """Parameters that training leaves out of weight decay.

        Returns:
            Their names: those of every backbone, and the last stage's positions.
        """
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(".embed")}


vcmamba_s = VCMamba  # VCMamba-S
vcmamba_m = partial(VCMamba, dims=(48, 96, 224, 448), depths=(4, 4, 12, 6))  # VCMamba-M
vcmamba_b = partial(VCMamba, dims=(64, 128, 320, 512), depths=(4, 4, 12, 6))  # VCMamba-B


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    They were trained with the scans of the authors' code: build the network with `released=True`.

    Args:
        state_dict: name → tensor, of one of their networks with four stages.

    Returns:
        State dict of `vcmamba_s`, `vcmamba_m` or `vcmamba_b`.
    """
    scans = [int(found[1]) for name in state_dict if (found := re.match(r"network\.6\.(\d+)\.mamba\.", name))]
    first = min(scans, default=0)

    def block(found: re.Match[str]) -> str:
        """Index of a block: after the downsampling layers and, if it scans, also after the positions."""
        stage, place = int(found[1]) // 2, int(found[2])
        return f"stages.{stage}.{place + 2 * (stage > 0) + (stage == 3 and bool(scans) and place >= first)}."

    def halving(found: re.Match[str]) -> str:
        return f"stages.{int(found[1]) // 2 + 1}.{int(found[2] == 'norm')}."

    return renamed(
        state_dict,
        [
            (r"^patch_embed\.", "stem."),
            (r"^network\.([0246])\.(\d+)\.", block),
            (r"^network\.([135])\.(proj|norm)\.", halving),
            (r"^pos_embed$", f"stages.3.{first + 2}.embed"),
            (r"^dist_head\.", "head_dist."),
            (r"\.layer_scale_2$", ".gamma"),
            (r"^(stages\.\d+\.\d+\.)norm\.", r"\1norm1."),
            (r"\.mlp\.fc1\.", ".ffn.0."),
            (r"\.mlp\.norm1\.", ".ffn.1."),
            (r"\.mlp\.mid\.", ".ffn.3."),
            (r"\.mlp\.mid_norm\.", ".ffn.4."),
            (r"\.mlp\.fc2\.", ".ffn.6."),
            (r"\.mlp\.norm2\.", ".ffn.7."),
            (r"\.mamba\.", ".mixer."),
            (r"\.mixer\.(x_proj|dt_proj|A_log|D\b)", r".mixer.scan.\1"),
            (r"\.direction_Bs", ".scan.directions"),
        ],
    )


_TINY = {"dims": (4, 4, 8, 8), "depths": (1, 1, 1, 2), "num_classes": 5}

METHOD = Method(
    id=285,
    name="VCMamba",
    kind="model",
    summary="Convolutions while the maps are large and snaking state-space scans on the last and smallest.",
    paper=Paper(
        "VCMamba: Bridging Convolutions with Multi-Directional Mamba for Efficient Visual Representation",
        "M. Munir et al.",
        2025,
        "arXiv:2509.04669",
    ),
    models={"vcmamba_s": vcmamba_s, "vcmamba_m": vcmamba_m, "vcmamba_b": vcmamba_b},
    cases={
        "vcmamba_s": {**_TINY, "scanning": 1, "in_channels": 1},
        "vcmamba_m": {**_TINY, "distilled": False},
        "vcmamba_b": {**_TINY, "released": True},
    },
)
