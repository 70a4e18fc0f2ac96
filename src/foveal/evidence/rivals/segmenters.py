"""Two small networks for semantic segmentation, a convolutional one and a transformer, with one kind of decoder.

Both are made of stages at a quarter, an eighth and a sixteenth of the picture, maps of (B, C, H, W) in and out, whose
outputs are projected, enlarged and added (a light version of SegFormer's decoder, arXiv:2105.15203).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Segmenter", "segmenter_cnn", "segmenter_vit"]


class _Residual(nn.Module):
    """Strided convolution, then two 3×3 convolutions and a shortcut."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(dim, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return F.relu(x + self.body(x))


class _Attention(nn.Module):
    """Attention to a map that is smaller by `reduce` (SegFormer), then an MLP with a depthwise convolution."""

    def __init__(self, dim: int, num_heads: int, reduce: int) -> None:
        super().__init__()
        self.num_heads, self.reduce = num_heads, reduce
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.q, self.kv, self.proj = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.up, self.down = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1)
        self.local = nn.Conv2d(2 * dim, 2 * dim, 3, 1, 1, groups=2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        small = F.avg_pool2d(y, self.reduce, ceil_mode=True) if self.reduce > 1 else y
        # (B, heads·d, H, W) to (B, heads, N, d)
        q, k, v = (z.flatten(2).unflatten(1, (self.num_heads, -1)).mT for z in (self.q(y), *self.kv(small).chunk(2, 1)))
        y = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2).unflatten(2, x.shape[2:])
        x = x + self.proj(y)
        return x + self.down(F.gelu(self.local(self.up(self.norm2(x)))))


def _transformer(dim: int, out: int, stride: int, *, num_heads: int, reduce: int) -> nn.Module:
    embed = nn.Conv2d(dim, out, 2 * stride - 1, stride, stride - 1)
    return nn.Sequential(embed, nn.GroupNorm(1, out), _Attention(out, num_heads, reduce))


class _Decoder(nn.Module):
    """Maps of all stages, projected, enlarged to the first one and added."""

    def __init__(self, dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Conv2d(d, dim, 1) for d in dims])
        self.mix = nn.Sequential(nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim, 3, 1, 1, groups=dim), nn.ReLU())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        projected = [layer(x) for layer, x in zip(self.projections, maps, strict=True)]
        return self.mix(sum(F.interpolate(x, size, mode="bilinear") for x in projected))


class Segmenter(nn.Module):
    """(B, 3, H, W) to logits of a quarter of the size, (B, num_classes, H/4, W/4).

    Args:
        stages: stages.
        dims: channels of their outputs.
        dim: channels of the decoder.
        num_classes: number of classes.
    """

    def __init__(self, stages: Sequence[nn.Module], dims: Sequence[int], *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.decoder = _Decoder(dims, dim)
        self.classifier = nn.Conv2d(dim, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment.

        Args:
            x: pictures, (B, 3, H, W).

        Returns:
            Logits, (B, num_classes, H/4, W/4).
        """
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.classifier(self.decoder(maps))


def segmenter_cnn(*, dims: Sequence[int] = (16, 32, 64), dim: int = 32, num_classes: int = 11) -> Segmenter:
    """The convolutional network.

    Args:
        dims: channels of the three stages.
        dim: channels of the decoder.
        num_classes: number of classes.

    Returns:
        The network.
    """
    stem = nn.Sequential(
        nn.Conv2d(3, dims[0], 3, 2, 1, bias=False), nn.BatchNorm2d(dims[0]), nn.ReLU(), _Residual(dims[0], dims[0], 2)
    )
    stages = [stem, *(_Residual(a, b, 2) for a, b in pairwise(dims))]
    return Segmenter(stages, dims, dim=dim, num_classes=num_classes)


def segmenter_vit(*, dims: Sequence[int] = (16, 32, 64), dim: int = 32, num_classes: int = 11) -> Segmenter:
    """The transformer.

    Args:
        dims: channels of the three stages.
        dim: channels of the decoder.
        num_classes: number of classes.

    Returns:
        The network.
    """
    settings = zip((3, *dims), dims, (4, 2, 2), (1, 2, 4), (4, 2, 1), strict=False)
    stages = [_transformer(a, b, s, num_heads=h, reduce=r) for a, b, s, h, r in settings]
    return Segmenter(stages, dims, dim=dim, num_classes=num_classes)
