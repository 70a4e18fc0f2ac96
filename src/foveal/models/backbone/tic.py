"""TiC: attention that slides over the map as a convolution does, so that its weights fit pictures of any size.

*Source*: S. Zhang et al., "TiC: Exploring Vision Transformer in Convolution", 2023 (arXiv:2310.04134). In MSA-Conv each
pixel p attends to the window of k×k pixels around it, d apart, for each head with width c,

    a(p, δ) = softmax_δ(q(p) · k(p + δ) / √c + b(δ));  y(p) = Σ_δ a(p, δ) v(p + δ)      q, k, v: (B, heads, c, H, W)

over those δ whose p + δ is on the map; b has one number for each head and place of the window. d > 1 is the dilated
form, as many heads as channels the depthwise one. Cost is linear in the pixels, and there is no position to resample.
Two mechanisms connect what no window joins:

    cyclic shift    block i of a stage rolls the map before its window slides, towards corner i mod 4, and back after it
    inter-pooling   the means of g×g cells of the map are keys and values of every pixel, in the same softmax

Blocks are x = x + MSA-Conv(norm x); x = x + mlp(norm x), in stages with a strided convolution between them.

*Differs from the paper*: pixels beyond the border are masked; in the authors' code, their keys are 0 and take part.
There, an operator has one head, no b, and a convolution in place of the mlp. How far and to where maps are rolled, what
the pooled tokens enter, and the sizes of the networks could not be looked up: a roll of half a window's side to
diagonal corners, one softmax, and Swin-T's channels and depths are foveal's choice.

*Provenance*: written from the abstract and the authors' code of the operator. Away from the border, with one head and
without b, outputs equal the unfolding in their validation script to 3e-7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MSAConv", "TiC", "msa_conv", "msa_conv_reference"]

CORNERS = ((-1, -1), (-1, 1), (1, 1), (1, -1))  # directions of the rolls of successive blocks, rows and columns


def msa_conv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    *,
    dilation: int = 1,
    pooled: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend to a sliding window.

    Args:
        query: queries, (B, heads, c, H, W).
        key: keys, (B, heads, c, H, W).
        value: values, (B, heads, c, H, W).
        bias: b, (heads, k²) with odd k; places of the window in raster order.
        dilation: d, distance between neighbouring places of the window.
        pooled: keys and values that every pixel sees besides, (B, heads, c, M) each.

    Returns:
        (B, heads, c, H, W).
    """
    heads, width, *sides = query.shape[1:]
    taps = bias.shape[1]
    size = round(taps**0.5)

    def windows(x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, k², H·W), 0 beyond the border."""
        taken = F.unfold(x, size, dilation=dilation, padding=dilation * (size // 2))
        return taken.unflatten(1, (x.shape[1], taps))

    # (B, heads, c, k², H·W)
    keys, values = (windows(x.flatten(1, 2)).unflatten(1, (heads, width)) for x in (key, value))
    queries = query.flatten(3) * width**-0.5
    inside = windows(query.new_ones(1, 1, *sides))[0] > 0
    scores = torch.einsum("bhcl,bhckl->bhkl", queries, keys) + bias[:, :, None]
    scores = scores.masked_fill(~inside, float("-inf"))
    if pooled is None:
        out = torch.einsum("bhkl,bhckl->bhcl", scores.softmax(2), values)
    else:
        means = torch.einsum("bhcl,bhcm->bhml", queries, pooled[0])
        near, far = torch.cat([scores, means], 2).softmax(2).split([taps, means.shape[2]], 2)
        out = torch.einsum("bhkl,bhckl->bhcl", near, values) + torch.einsum("bhml,bhcm->bhcl", far, pooled[1])
    return out.unflatten(3, sides)


def msa_conv_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    *,
    dilation: int = 1,
    pooled: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The same pixel by pixel: for each, attention to all pixels, with a mask that leaves those of its window.

    Args:
        query: (B, heads, c, H, W).
        key: (B, heads, c, H, W).
        value: (B, heads, c, H, W).
        bias: (heads, k²).
        dilation: d.
        pooled: (B, heads, c, M) each.

    Returns:
        (B, heads, c, H, W).
    """
    heads, width, height, across = query.shape[1:]
    size = round(bias.shape[1] ** 0.5)
    pixels = []
    for place in range(height * across):
        i, j = divmod(place, across)
        mask = bias.new_full((heads, height, across), float("-inf"))
        for tap in range(size**2):
            row, column = (at + dilation * (of - size // 2) for at, of in zip((i, j), divmod(tap, size), strict=True))
            if 0 <= row < height and 0 <= column < across:
                mask[:, row, column] = bias[:, tap]
        keys, values, added = key.flatten(3), value.flatten(3), mask.flatten(1)
        if pooled is not None:
            keys, values = torch.cat([keys, pooled[0]], 3), torch.cat([values, pooled[1]], 3)
            added = F.pad(added, (0, pooled[0].shape[3]))
        scores = (query[:, :, :, i, j, None] * keys).sum(2) / width**0.5 + added
        pixels.append((scores.softmax(2)[:, :, None] * values).sum(3))
    return torch.stack(pixels, 3).unflatten(3, (height, across))


class MSAConv(nn.Module):
    """Multi-head attention in a sliding window, (B, C, H, W) to the same, any H and W.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of heads; C of them are the depthwise form.
        kernel_size: k, side of the window, odd.
        dilation: d, distance between neighbouring places of the window.
        shift: rows and columns by which the map is rolled first, and back after.
        pool: g, side of the grid of means that every pixel sees too; 0 for none.

    Raises:
        ValueError: a width that the heads do not divide, or an even window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int = 7,
        dilation: int = 1,
        shift: tuple[int, int] = (0, 0),
        pool: int = 0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.num_heads, self.dilation, self.shift, self.pool = num_heads, dilation, shift, pool
        self.qkv, self.proj = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.bias = nn.Parameter(torch.zeros(num_heads, kernel_size**2))
        trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.shift):
            x = x.roll(self.shift, (2, 3))
        query, key, value = self.qkv(x).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        pooled = None
        if self.pool:
            # the mean of keys is the key of the mean
            means, values = (F.adaptive_avg_pool2d(y.flatten(1, 2), self.pool).flatten(2) for y in (key, value))
            pooled = means.unflatten(1, (self.num_heads, -1)), values.unflatten(1, (self.num_heads, -1))
        out = self.proj(msa_conv(query, key, value, self.bias, dilation=self.dilation, pooled=pooled).flatten(1, 2))
        return out.roll([-by for by in self.shift], (2, 3)) if any(self.shift) else out


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, attention: MSAConv, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1, self.attention = LayerNorm2d(dim), attention
        self.norm2 = LayerNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TiC(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage, multiples of `num_heads`.
        depths: number of blocks of each stage.
        num_heads: heads of each stage.
        kernel_size: side of the window, odd.
        cyclic: whether maps are rolled before windows slide, by half a window's side.
        pool: side of the grid of means that every pixel sees; 0 for none.
        mlp_ratio: hidden channels of the mlp over the channels.
        patch_size: side and stride of the first convolution.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: if `dims`, `depths` and `num_heads` differ in length.
    """

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        *,
        num_heads: Sequence[int] = (3, 6, 12, 24),
        kernel_size: int = 7,
        cyclic: bool = True,
        pool: int = 2,
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        if not len(dims) == len(depths) == len(num_heads):
            raise ValueError(
                "dims, depths and num_heads must have the same length, got "
                f"{len(dims)}, {len(depths)} and {len(num_heads)}"
            )
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        by = (kernel_size + 1) // 2 if cyclic else 0
        stages = []
        for i, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            layers: list[nn.Module] = [nn.Conv2d(dims[i - 1], dim, 2, 2), LayerNorm2d(dim)] if i else []
            for number in range(depth):
                down, right = CORNERS[number % 4]
                attention = MSAConv(dim, heads, kernel_size=kernel_size, shift=(by * down, by * right), pool=pool)
                layers.append(_Block(dim, attention, mlp_ratio, next(drops)))
            stages.append(nn.Sequential(*layers))
        super().__init__(
            nn.Sequential(nn.Conv2d(in_channels, dims[0], patch_size, patch_size), LayerNorm2d(dims[0])),
            stages,
            dims,
            [patch_size * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1]),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


tic = TiC  # channels and depths of Swin-T; see the head

METHOD = Method(
    id=306,
    name="TiC",
    kind="model",
    summary="Attention slides over the map as a convolution does; rolls and pooled means reach what no window sees.",
    paper=Paper("TiC: Exploring Vision Transformer in Convolution", "S. Zhang et al.", 2023, "arXiv:2310.04134"),
    models={"tic": tic},
    cases={
        "tic": {
            "dims": (4, 8),
            "depths": (1, 2),
            "num_heads": (2, 2),
            "kernel_size": 3,
            "patch_size": 2,
            "in_channels": 1,
            "num_classes": 3,
            "drop_path": 0.1,
        }
    },
)
