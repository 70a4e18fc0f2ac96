"""GroupMamba: channels in four groups, each scanned in one of four directions, then reweighted by channel attention.

*Source*: A. Shaker et al., "GroupMamba: Efficient Group-Based Visual State Space Model", CVPR 2025 (arXiv:2407.13772),
section 3. In a layer each group of C/4 channels goes through its own block (VSSS: SS2D with one route and no
expansion), and the whole through channel affinity modulation (CAM):

    n = norm(x);  g = VSSS_k(n_k), k = 1…4, concatenated                       (B, C, H, W)
    layer(x) = W norm(s · g ∘ n ∘ sigmoid(W₂ relu(W₁ mean(n))))                s a learned number, one norm for both

The four scans are one scan of C channels in four groups. A block adds a feed-forward network with a depthwise
convolution. After the last stage one more block processes the mean alone, and the logits of two classifiers, one for
the labels and one for a teacher's outputs, are averaged.

*Differs from the paper*: nothing. In training, `distilled_training = True` makes the network return both logits.
*Provenance*: written from the paper; sizes and order of operations were looked up in the authors' code. With its
weights, converted by `from_authors`, the logits agree with its own to 2e-6 of the largest.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from foveal.models.backbone.vmamba import init_weights
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.ss2d import S6, one_route_each, one_route_each_back
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "VSSS",
    "GroupMamba",
    "GroupMambaBlock",
    "GroupMambaLayer",
    "from_authors",
    "groupmamba_base",
    "groupmamba_small",
    "groupmamba_tiny",
]


class VSSS(nn.Module):
    """The four mixers of a layer in parallel, (B, 4·C, H, W) to the same; the groups do not interact.

    Args:
        dim: 4·C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv2d(dim, dim, 1, groups=4, bias=False)
        self.gate_proj = nn.Conv2d(dim, dim, 1, groups=4, bias=False)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.s6 = S6(dim // 4, state=1, dt_rank=-(-dim // 64), num_routes=4)
        self.norm_weight = nn.Parameter(torch.ones(4, 1, dim // 4))
        self.norm_bias = nn.Parameter(torch.zeros(4, 1, dim // 4))
        self.out_proj = nn.Conv2d(dim, dim, 1, groups=4, bias=False)
        for projection in (self.in_proj, self.gate_proj, self.out_proj):
            nn.init.trunc_normal_(projection.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        y = self.s6(one_route_each(F.silu(self.conv(self.in_proj(x)))))
        # (B, 4, HW, C), each group normalised separately
        y = torch.addcmul(self.norm_bias, F.layer_norm(y.mT, y.shape[2:3]), self.norm_weight)
        return self.out_proj(one_route_each_back(y.mT, x.shape[2], x.shape[3]) * F.silu(self.gate_proj(x)))


class GroupMambaLayer(nn.Module):
    """Four scans and channel affinity modulation, (B, C, H, W) to the same.

    Args:
        dim: C, a multiple of 4.

    Raises:
        ValueError: if `dim` is not a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, one group per direction, got {dim}; take {dim + -dim % 4}")
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.vsss = VSSS(dim)
        self.scale = nn.Parameter(torch.ones(1))
        self.reduce = nn.Conv2d(dim, max(1, dim // 16), 1)
        self.expand = nn.Conv2d(max(1, dim // 16), dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        affinity = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.proj(self.norm(self.vsss(x) * self.scale * x * affinity))


class GroupMambaBlock(nn.Module):
    """A layer and a feed-forward network, each with a shortcut; (B, C, H, W) to the same.

    Args:
        dim: C.
        mlp_ratio: ratio of hidden channels to C.
        drop_path: drop-path rate of the branches.
    """

    def __init__(self, dim: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.layer = GroupMambaLayer(dim)
        self.mlp = nn.Sequential(
            LayerNorm2d(dim, eps=1e-6),
            nn.Conv2d(dim, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, dim, 1),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer(x))
        return x + self.drop_path(self.mlp(x))


class _MeanBlock(nn.Module):
    """The block after the last stage, for the mean vector; (B, C, 1, 1) to the same."""

    def __init__(self, dim: int, *, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.layer = GroupMambaLayer(dim)
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.mlp = nn.Sequential(
            LayerNorm2d(dim, eps=1e-6), nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(self.layer(x))
        return x + self.mlp(x)


class GroupMamba(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes).

    Args:
        stem_dim: number of channels of the stem's three convolutions.
        dims: number of channels of each stage, multiples of 4.
        depths: number of blocks of each stage.
        mlp_ratios: ratio of hidden channels to a block's channels, for each stage.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
    """

    heads = ("head", "head_dist")
    head_dist: nn.Module

    def __init__(
        self,
        *,
        stem_dim: int = 32,
        dims: Sequence[int] = (64, 128, 348, 448),
        depths: Sequence[int] = (3, 4, 9, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        stem: list[nn.Module] = []
        for channels, kernel_size, stride in ((in_channels, 7, 2), (stem_dim, 3, 1), (stem_dim, 3, 1)):
            stem.append(nn.Conv2d(channels, stem_dim, kernel_size, stride, kernel_size // 2, bias=False))
            stem += [nn.BatchNorm2d(stem_dim), nn.ReLU()]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, depth in enumerate(depths):
            entry = nn.Conv2d(dims[i - 1] if i else stem_dim, dims[i], 3, 2, 1)
            blocks = [GroupMambaBlock(dims[i], mlp_ratio=mlp_ratios[i], drop_path=next(drops)) for _ in range(depth)]
            last = [LayerNorm2d(dims[i], eps=1e-6)] if i < len(dims) - 1 else []
            stages.append(nn.Sequential(entry, LayerNorm2d(dims[i], eps=1e-5), *blocks, *last))
        super().__init__(
            nn.Sequential(*stem),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
        )
        self.mean_block = _MeanBlock(dims[-1], mlp_ratio=mlp_ratios[-1])
        self.head_norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.distilled_training = False
        self.apply(init_weights)

    def pool(self, x: Tensor) -> Tensor:
        """The mean of a map, after one more block.

        Args:
            x: last map, (B, C, H', W').

        Returns:
            (B, C).
        """
        return self.head_norm(self.mean_block(x.mean((2, 3), keepdim=True)).flatten(1))

    def classify(self, x: Tensor) -> Any:
        """Logits of both heads.

        Args:
            x: (B, C).

        Returns:
            (B, num_classes), the mean; while training with `distilled_training`, the answers for labels and teacher.
        """
        if self.training and self.distilled_training:
            return self.head(x), self.head_dist(x)
        return super().classify(x)


groupmamba_tiny = GroupMamba  # GroupMamba-T, 23 M parameters
groupmamba_small = partial(
    GroupMamba, stem_dim=64, dims=(64, 128, 348, 512), depths=(3, 4, 16, 3)
)  # GroupMamba-S, 34 M
groupmamba_base = partial(GroupMamba, stem_dim=64, dims=(96, 192, 424, 512), depths=(3, 6, 21, 3))  # GroupMamba-B, 57 M


def _joined(groups: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The four mixers of a layer, under their own names, as one `VSSS`."""
    every = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    inputs, gates = zip(*(group["in_proj.weight"].chunk(2) for group in groups), strict=True)
    return {
        "in_proj.weight": torch.cat(inputs)[..., None, None],
        "gate_proj.weight": torch.cat(gates)[..., None, None],
        "out_proj.weight": every["out_proj.weight"][..., None, None],
        "conv.weight": every["conv2d.weight"],
        "conv.bias": every["conv2d.bias"],
        "norm_weight": every["out_norm.weight"].view(4, 1, -1),
        "norm_bias": every["out_norm.bias"].view(4, 1, -1),
        "s6.x_proj": every["x_proj_weight"],
        "s6.dt_proj": every["dt_projs_weight"],
        "s6.dt_bias": every["dt_projs_bias"].flatten(),
        "s6.A_log": every["A_logs"],
        "s6.D": every["Ds"],
    }


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names and shapes.

    Args:
        state_dict: name → tensor, from one of their classifiers.

    Returns:
        State dict of `groupmamba_tiny`, `groupmamba_small` or `groupmamba_base`.
    """
    # index of the norm at the end of each stage, after its convolution, norm and blocks
    after: dict[str, int] = {}
    for name in state_dict:
        if at := re.match(r"block(\d)\.(\d+)\.", name):
            after[at[1]] = max(after.get(at[1], 0), int(at[2]) + 3)
    found = renamed(
        state_dict,
        [
            (r"^patch_embed1\.conv\.", "stem."),
            (r"^patch_embed(\d)\.proj\.", lambda at: f"stages.{int(at[1]) - 1}.0."),
            (r"^patch_embed(\d)\.norm\.", lambda at: f"stages.{int(at[1]) - 1}.1."),
            (r"^block(\d)\.(\d+)\.", lambda at: f"stages.{int(at[1]) - 1}.{int(at[2]) + 2}."),
            (rf"^norm{len(after)}\.", "head_norm."),
            (r"^norm(\d)\.", lambda at: f"stages.{int(at[1]) - 1}.{after[at[1]]}."),
            (r"^dist_head\.", "head_dist."),
            (r"^post_network\.0\.mlp\.fc2\.", "mean_block.mlp.3."),
            (r"^post_network\.0\.norm1\.", "mean_block.norm."),
            (r"^post_network\.0\.", "mean_block."),
            (r"\.norm2\.", ".mlp.0."),
            (r"\.mlp\.fc1\.", ".mlp.1."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.2."),
            (r"\.mlp\.fc2\.", ".mlp.4."),
            (r"\.attn\.skip_scale$", ".layer.scale"),
            (r"\.attn\.fc1\.", ".layer.reduce."),
            (r"\.attn\.fc2\.", ".layer.expand."),
            (r"\.attn\.", ".layer."),
        ],
    )
    ours: dict[str, Tensor] = {}
    groups: dict[str, list[dict[str, Tensor]]] = {}
    for name, value in found.items():
        layer, mixer, rest = name.partition(".mamba_g")
        if mixer:
            groups.setdefault(layer, [{}, {}, {}, {}])[int(rest[0]) - 1][rest[2:]] = value
        elif value.ndim == 2 and not name.startswith("head"):
            ours[name] = value[..., None, None]  # linear layers become 1×1 convolutions
        else:
            ours[name] = value
    for layer, parts in groups.items():
        ours |= {f"{layer}.vsss.{name}": value for name, value in _joined(parts).items()}
    return ours


_TINY = {"stem_dim": 4, "dims": (8, 12), "depths": (1, 1), "num_classes": 5}

METHOD = Method(
    id=276,
    name="GroupMamba",
    kind="model",
    summary="Four groups of channels, each scanned in one direction, then weighed by what all channels say.",
    paper=Paper(
        "GroupMamba: Efficient Group-Based Visual State Space Model", "A. Shaker et al.", 2024, "arXiv:2407.13772"
    ),
    models={
        "groupmamba_tiny": groupmamba_tiny,
        "groupmamba_small": groupmamba_small,
        "groupmamba_base": groupmamba_base,
    },
    cases={
        "groupmamba_tiny": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "groupmamba_small": _TINY,
        "groupmamba_base": _TINY,
    },
)
