"""GLMix and GLNet: attention among 64 soft clusters of the map, convolutions on the map itself, and their sum.

*Source*: L. Zhu et al., "Revisiting the Integration of Convolution and Attention for Vision Backbone", NeurIPS 2024
(arXiv:2411.14429), sections 3.2 and 3.3. A layer sees the map as N pixels and as M slots, which begin as means over a
grid of cells:

    L = s · norm(slots) norm(x)ᵀ                                     similarities, (B, M, N), s learned
    z = MHSA(softmax over pixels(L) x)                               soft clustering, attention among the slots
    y = softmax over slots(Lᵀ) z + conv(x)                           dispatch, beside 1×1, k×k depthwise, 1×1
    multiply-adds: N (3 M C + 2 C² + k² C) + M (4 C² + 2 M C)        linear in N

A block adds a convolutional position encoding before it and an MLP with a depthwise convolution behind it. GLNet has
four stages: GLMix in the first two, GLMix and plain attention in turn in the third, plain attention in the last.

Shapes: B batch, N = H·W pixels, M slots, C channels, k side of the depthwise kernel.

*Differs from the paper*: nothing; the variant in the layout of Swin-T is left out.
*Provenance*: written from the paper; sizes, norms and the order of the operations were looked up in the authors' code,
whose networks this equals to 1e-5.
"""

from __future__ import annotations

from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, DropPath, LayerNorm2d, LayerScale2d, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GLMix", "GLNet", "GLNetBlock", "assign", "glnet_4g", "glnet_9g", "glnet_16g"]

MIXERS = ("glmix", "attention", "alternate")


def assign(x: Tensor, slots: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Soft assignment between pixels and slots by cosine similarity.

    Args:
        x: pixels, (B, C, N).
        slots: slots, (B, M, C).
        scale: factor of the similarities, s.

    Returns:
        Weights of the pixels in each slot, (B, M, N), whose sum over pixels is 1; weights of the slots in each pixel,
        (B, M, N), whose sum over slots is 1.
    """
    similarity = F.normalize(slots, dim=2) @ (scale * F.normalize(x, dim=1))
    return similarity.softmax(2), similarity.softmax(1)


class GLMix(nn.Module):
    """Attention among slots beside convolutions on the map, (B, C, H, W) to the same.

    Args:
        dim: C.
        num_heads: attention heads among the slots.
        num_slots: M, a square number.
        kernel_size: k, odd.

    Raises:
        ValueError: a number of slots that is no square.
    """

    def __init__(self, dim: int, num_heads: int, *, num_slots: int = 64, kernel_size: int = 5) -> None:
        super().__init__()
        self.cells = isqrt(num_slots)
        if num_slots < 1 or self.cells**2 != num_slots:
            raise ValueError(f"num_slots must be a square number, got {num_slots}; the slots begin as a grid of cells")
        self.scale = nn.Parameter(torch.tensor(dim**-0.5))
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim),
            nn.Conv2d(dim, dim, 1),
        )

    def slots(self, x: Tensor) -> Tensor:
        """What the slots begin as.

        Args:
            x: map, (B, C, H, W).

        Returns:
            Means over a grid of cells, (B, M, C).
        """
        return F.adaptive_avg_pool2d(x, self.cells).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, slots: Tensor | None = None) -> Tensor:
        flat = x.flatten(2)
        gather, dispatch = assign(flat, self.slots(x) if slots is None else slots, self.scale)
        mixed = self.attn(gather @ flat.transpose(1, 2))
        # (B, C, M) · (B, M, N) to (B, C, H, W)
        return (mixed.transpose(1, 2) @ dispatch).view_as(x) + self.conv(x)


class _MapAttention(nn.Module):
    """Layer norm and attention among all pixels, (B, C, H, W) to the same."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.norm(x.flatten(2).transpose(1, 2))).transpose(1, 2).reshape(x.shape)


class _ConvMlp(nn.Sequential):
    """1×1 convolution, depthwise 3×3 with a shortcut, GELU, 1×1 convolution, (B, C, H, W) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(F.gelu(x + self.dwconv(x)))


class GLNetBlock(nn.Module):
    """Positions, mixing of places, mixing of channels, each with a shortcut, (B, C, H, W) to the same.

    Args:
        dim: C.
        num_heads: attention heads.
        mixer: "glmix" or "attention".
        num_slots: M.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability of dropping each branch while training.
        layer_scale: initial scale of each branch; None for no scales.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mixer: str = "glmix",
        num_slots: int = 64,
        mlp_ratio: float = 3.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.pos_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LayerNorm2d(dim) if mixer == "glmix" else None  # attention normalises by itself
        self.mixer: Any = (
            GLMix(dim, num_heads, num_slots=num_slots) if mixer == "glmix" else _MapAttention(dim, num_heads)
        )
        self.norm2 = LayerNorm2d(dim)
        self.mlp = _ConvMlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)
        self.ls1, self.ls2 = (
            nn.Identity() if layer_scale is None else LayerScale2d(dim, init_values=layer_scale) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        places = x + self.pos_conv(x)
        # the slots begin as cells of the map before positions and norm
        y = self.mixer(places) if self.norm1 is None else self.mixer(self.norm1(places), self.mixer.slots(x))
        x = places + self.drop_path(self.ls1(y))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class GLNet(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any H and W.

    Args:
        dims: C of each stage.
        depths: number of blocks of each stage.
        mixers: of each stage, "glmix", "attention", or "alternate": both in turn, beginning with GLMix.
        head_dim: channels of an attention head.
        num_slots: M.
        mlp_ratio: hidden channels of the MLPs over C.
        layer_scale: initial scale of each branch; None for no scales.
        in_channels: of the picture.
        num_classes: of the head; 0 gives pooled features.
        drop_path: of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: an unknown mixer, or not one for each stage.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (4, 4, 18, 4),
        mixers: Sequence[str] = ("glmix", "glmix", "alternate", "attention"),
        head_dim: int = 32,
        num_slots: int = 64,
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        if len(mixers) != len(dims) or not set(mixers) <= set(MIXERS):
            raise ValueError(f"mixers must be {len(dims)} of {', '.join(MIXERS)}, got {tuple(mixers)}")
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        half = dims[0] // 2
        stem = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, 2, 1),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dims[0], 3, 2, 1),
            nn.BatchNorm2d(dims[0]),
        )
        stages = []
        for i, (dim, depth, mixer) in enumerate(zip(dims, depths, mixers, strict=True)):
            layers: list[nn.Module] = []
            if i:
                layers += [nn.Conv2d(dims[i - 1], dim, 3, 2, 1), nn.BatchNorm2d(dim)]
            for j in range(depth):
                kind = ("glmix", "attention")[j % 2] if mixer == "alternate" else mixer
                words = {"num_slots": num_slots, "mlp_ratio": mlp_ratio, "drop_path": next(rates)}
                layers.append(GLNetBlock(dim, dim // head_dim, mixer=kind, layer_scale=layer_scale, **words))
            stages.append(nn.Sequential(*layers))
        super().__init__(
            stem,
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=nn.BatchNorm2d(dims[-1]),
        )
        self.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


glnet_4g = GLNet  # GLNet-4G
glnet_9g = partial(GLNet, dims=(96, 192, 384, 768))  # GLNet-9G
glnet_16g = partial(GLNet, dims=(128, 256, 512, 1024), layer_scale=1e-4)  # GLNet-16G

_TINY = {"dims": (8, 8), "depths": (1, 2), "mixers": ("glmix", "alternate"), "head_dim": 4, "num_slots": 4}

METHOD = Method(
    id=325,
    name="GLMix",
    kind="model",
    summary="Attention among a few soft clusters of the map, beside depthwise convolutions on the map.",
    paper=Paper(
        "Revisiting the Integration of Convolution and Attention for Vision Backbone",
        "L. Zhu et al.",
        2024,
        "arXiv:2411.14429",
    ),
    models={"glnet_4g": glnet_4g, "glnet_9g": glnet_9g, "glnet_16g": glnet_16g},
    cases={
        "glnet_4g": {**_TINY, "num_classes": 3, "in_channels": 1, "drop_path": 0.1},
        "glnet_9g": {**_TINY, "num_classes": 3},
        "glnet_16g": {**_TINY, "num_classes": 3},
    },
)
