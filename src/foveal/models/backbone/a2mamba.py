"""A2Mamba: local attention maps at two scales mix the values, and the same maps mix a scan's hidden states.

*Source*: M. Lou, Y. Fu, Y. Yu, "A2Mamba: Attention-augmented State Space Models for Visual Recognition", 2025
(arXiv:2507.16624), section III. A convolutional stem of stride 4, then four stages joined by 3×3 convolutions of stride
2; every block is

    x = x + dw₃(x);  x = x + mixer(norm(x));  x = x + dw₃(x);  x = x + W₂(1 + dw₃)(gelu(W₁ norm(x)))

The mixer is MASS, `foveal.nn.mass`; in the last stage it is full attention. A 1×1 convolution maps the last feature map
to 1,024 channels before pooling.

*Differs from the paper*: maps may be smaller than a window, see `foveal.nn.neighbourhood`.
*Provenance*: written from the paper; the stem, the head, the layer scales and the initial values were looked up in the
authors' code. With its weights, converted by `from_authors`, the logits agree with its own to 1e-6 of the largest.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from foveal.nn.mass import MASS
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.vmamba_names import S6_NAMES
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["A2Mamba", "a2mamba_b", "a2mamba_l", "a2mamba_n", "a2mamba_s", "a2mamba_t", "from_authors"]


class _FeedForward(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.local(x))


class _Scale(nn.Module):
    """A scale and a bias per channel."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, 1, 1), float(start)))
        self.bias = nn.Parameter(torch.zeros(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class _Block(nn.Module):
    """(B, C, H, W) to the same; `scaled` is "branch" or "shortcut", what is scaled, or "" for neither."""

    def __init__(
        self, dim: int, mixer: nn.Module, *, mlp_ratio: float, drop_path: float, scaled: str, start: float
    ) -> None:
        super().__init__()
        self.local1, self.local2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.norm1, self.norm2 = (LayerNorm2d(dim, eps=1e-6) for _ in range(2))
        self.mixer = mixer
        self.mlp = _FeedForward(dim, int(mlp_ratio * dim))
        self.scale1, self.scale2 = (_Scale(dim, start) if scaled else nn.Identity() for _ in range(2))
        self.shortcut = scaled == "shortcut"
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        for local, norm, branch, scale in (
            (self.local1, self.norm1, self.mixer, self.scale1),
            (self.local2, self.norm2, self.mlp, self.scale2),
        ):
            x = x + local(x)
            y = branch(norm(x))
            x = scale(x) + self.drop_path(y) if self.shortcut else x + self.drop_path(scale(y))
        return x


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class A2Mamba(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: number of channels of each stage.
        depths: number of blocks of each stage.
        num_heads: number of heads of each stage, even.
        windows: K, window size of each stage, odd.
        mlp_ratios: ratio of hidden channels to a block's channels, for each stage.
        scaled: part of a block that is scaled, for each stage: "branch", "shortcut" or "" for none.
        scale_start: initial value of the scales of each stage.
        projection: number of channels that are pooled.
        attend_all: whether the last stage uses full attention instead of the scan.
        aggregate: whether the attention maps mix the scan's states, see `MASS`.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
    """

    def __init__(
        self,
        dims: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (2, 2, 8, 2),
        num_heads: Sequence[int] = (2, 2, 4, 8),
        *,
        windows: Sequence[int] = (11, 9, 7, 7),
        mlp_ratios: Sequence[float] = (4, 4, 3, 3),
        scaled: Sequence[str] = ("", "", "", ""),
        scale_start: Sequence[float] = (1, 1, 1, 1),
        projection: int = 1024,
        attend_all: bool = True,
        aggregate: bool = True,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = [
            nn.Sequential(
                *(_conv(dims[i - 1], dims[i], 2) if i else []),
                *(
                    _Block(
                        dims[i],
                        MASS(
                            dims[i],
                            num_heads[i],
                            windows[i],
                            attend_all=attend_all and i == len(depths) - 1,
                            aggregate=aggregate,
                        ),
                        mlp_ratio=mlp_ratios[i],
                        drop_path=next(drops),
                        scaled=scaled[i],
                        start=scale_start[i],
                    )
                    for _ in range(depth)
                ),
            )
            for i, depth in enumerate(depths)
        ]
        half = dims[0] // 2
        stem = [*_conv(in_channels, half, 2), nn.GELU(), *_conv(half, half), nn.GELU()]
        stem += [*_conv(half, dims[0], 2), nn.GELU(), *_conv(dims[0], dims[0])]
        reductions = [4 * 2**i for i in range(len(dims))]
        super().__init__(nn.Sequential(*stem), stages, dims, reductions, num_classes=0, in_channels=in_channels)
        self.projection = nn.Sequential(nn.Conv2d(dims[-1], projection, 1), nn.BatchNorm2d(projection), nn.SiLU())
        self.head_hidden_size = projection
        self.reset_classifier(num_classes)
        self.apply(_init_weights)

    def pool(self, x: Tensor) -> Tensor:
        """The mean of the projected map.

        Args:
            x: last map, (B, C, H', W').

        Returns:
            (B, projection).
        """
        return super().pool(self.projection(x))


a2mamba_n = A2Mamba  # A2Mamba-N, 4 M parameters
a2mamba_t = partial(  # A2Mamba-T, 15 M
    A2Mamba,
    dims=(48, 96, 256, 448),
    depths=(2, 2, 10, 2),
    num_heads=(2, 4, 8, 16),
)
a2mamba_s = partial(  # A2Mamba-S, 31 M
    A2Mamba,
    dims=(64, 128, 320, 512),
    depths=(2, 4, 12, 4),
    num_heads=(2, 4, 10, 16),
    scaled=("", "", "shortcut", "shortcut"),
)
a2mamba_b = partial(  # A2Mamba-B, 51 M
    A2Mamba,
    dims=(96, 192, 384, 512),
    depths=(4, 6, 12, 6),
    num_heads=(4, 8, 12, 16),
    mlp_ratios=(4, 4, 3.75, 3.75),
    scaled=("branch",) * 4,
    scale_start=(1, 1, 1e-6, 1e-6),
)
a2mamba_l = partial(  # A2Mamba-L, 95 M
    A2Mamba,
    dims=(96, 192, 448, 672),
    depths=(4, 6, 18, 6),
    num_heads=(4, 8, 16, 24),
    mlp_ratios=(4, 4, 4, 4),
    scaled=("branch",) * 4,
    scale_start=(1, 1, 1e-6, 1e-6),
)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names and shapes.

    Args:
        state_dict: name → tensor, from one of their classifiers.

    Returns:
        State dict of the network of the same size.
    """
    found = renamed(
        # the angles are computed here, and both halves of the heads share the first bias
        {name: value for name, value in state_dict.items() if not re.search(r"\.(rope\.angle|rpb\.1)$", name)},
        [
            (r"^patch_embed\.", "stem."),
            (r"^classifier\.4\.", "head."),
            (r"^classifier\.", "projection."),
            # our stages begin with the downsampling convolution and its norm, theirs end with them
            (
                r"^layers\.(\d+)\.blocks\.(\d+)",
                lambda at: f"stages.{int(at[1]) // 2}.{int(at[2]) + 2 * (at[1] != '0')}",
            ),
            (r"^layers\.(\d+)\.", lambda at: f"stages.{int(at[1]) // 2 + 1}."),
            (r"\.cpe(\d)\.", r".local\1."),
            (r"\.layer_scale(\d)\.", r".scale\1."),
            (r"\.mlp\.dwconv\.", ".mlp.local."),
            (r"\.token_mixer\.", ".mixer."),
            (r"\.lepe\.", ".local."),
            (r"\.rpb\.0$", ".bias"),
            (r"\.rpb\.2$", ".bias_all"),
            (r"\.ssm\.conv2d\.", ".conv."),
            (r"\.ssm\.state_fusion\.", ".heads."),
            *S6_NAMES,
        ],
    )

    def shaped(name: str, value: Tensor) -> Tensor:
        if name.endswith((".s6.x_proj", ".s6.dt_proj")):
            return value[None]  # a single route
        if re.search(r"\.scale\d\.", name):
            return value.view(-1, 1, 1)
        return value.flatten(1) if name == "head.weight" else value

    return {name: shaped(name, value) for name, value in found.items()}


_TINY = {"dims": (8, 16), "depths": (1, 1), "num_heads": (2, 2), "projection": 12, "num_classes": 5}

METHOD = Method(
    id=316,
    name="A2Mamba",
    kind="model",
    summary="Local attention maps that first gather values and then the hidden states of a selective scan.",
    paper=Paper(
        "A2Mamba: Attention-augmented State Space Models for Visual Recognition",
        "M. Lou et al.",
        2025,
        "arXiv:2507.16624",
    ),
    models={
        "a2mamba_n": a2mamba_n,
        "a2mamba_t": a2mamba_t,
        "a2mamba_s": a2mamba_s,
        "a2mamba_b": a2mamba_b,
        "a2mamba_l": a2mamba_l,
    },
    cases={
        "a2mamba_n": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "a2mamba_t": _TINY,
        "a2mamba_s": _TINY,
        "a2mamba_b": _TINY,
        "a2mamba_l": _TINY,
    },
)
