"""MetaFormer for metalenses: a poor lens's pictures, deconvolved several ways, put right by two kinds of attention.

*Source*: B. Lee et al., "MetaFormer: High-fidelity Metalens Imaging via Aberration Correcting Transformers", 2024
(arXiv:2412.04591): multiple adaptive filters guidance (MAFG), and spatial and transposed self-attention fusion (STAF).
The network, x: (B, 3, H, W), sees the picture and M Wiener filters of it, which know the lens's point spread functions
(`foveal.nn.wiener`), from sharp and noisy to smooth and clean:

    out = x + U([x, wiener(x; r₁), …, wiener(x; r_M)])
    y = z + STAF(norm(z));   z' = y + GDFN(norm(y));   STAF(z) = W [spatial(z), transposed(z)]

Spatial attention is among the pixels of windows of w×w, (B·HW/w², heads, w², C/heads); transposed attention is among
channels over the whole map, (B, heads, C/heads, HW), with tokens of unit length and a learnt temperature. GDFN gates
one depthwise convolution by another. Each level of the U has a quarter of the positions and twice the channels of the
one above.

*Differs from the paper*: STAF is in every block; sizes and the filters' ratios are our choice; the lens's field is
parted into rings. The second version's reweighting of the filters by cross-attention is left out.

*Provenance*: written from the paper's description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.nn.wiener import WienerBank
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RATIOS", "FusedAttention", "MetalensMetaFormer", "joined", "transposed_attention", "windows"]

RATIOS = (1e-3, 1e-2, 1e-1)  # a decade apart: sharp and noisy to smooth and clean


def windows(x: Tensor, size: int) -> Tensor:
    """Cut a map into windows.

    Args:
        x: (B, C, H, W), both sides multiples of `size`.
        size: w.

    Returns:
        (B, HW / w², w², C).
    """
    # (B, C, H / w, w, W / w, w)
    cut = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def joined(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of `windows`.

    Args:
        x: (B, HW / w², w², C).
        size: w.
        height: H.
        width: W.

    Returns:
        (B, C, H, W).
    """
    cut = x.unflatten(2, (size, size)).unflatten(1, (height // size, width // size))
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def transposed_attention(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor) -> Tensor:
    """Attention among channels.

    Args:
        query: (B, heads, C, N).
        key: the same.
        value: the same.
        temperature: factor of the cosines, (heads, 1, 1).

    Returns:
        (B, heads, C, N).
    """
    scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT
    return F.softmax(scores * temperature, -1) @ value


class FusedAttention(nn.Module):
    """STAF, (B, C, H, W) to the same; both sides are multiples of the window.

    Args:
        dim: C.
        num_heads: heads of both kinds, a divisor of C.
        window: w.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        self.num_heads, self.window = num_heads, window
        self.spatial = nn.Conv2d(dim, 3 * dim, 1)
        self.position = nn.Parameter(torch.zeros(num_heads, window**2, window**2))
        self.transposed = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.transposed_conv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.fuse = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # (B, windows, heads, w², C / heads) each
        cut = windows(self.spatial(x), self.window).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = cut.unbind(0)
        near = F.scaled_dot_product_attention(query, key, value, self.position).transpose(2, 3).flatten(3)
        # (B, heads, C / heads, N) each
        maps = self.transposed_conv(self.transposed(x)).flatten(2).unflatten(1, (3, self.num_heads, -1))
        query, key, value = maps.unbind(1)
        far = transposed_attention(query, key, value, self.temperature)
        return self.fuse(torch.cat([joined(near, self.window, height, width), far.flatten(1, 2).view_as(x)], 1))


class _Gated(nn.Module):
    """GDFN, (B, C, H, W) to the same."""

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.into = nn.Conv2d(dim, 2 * hidden, 1)
        self.conv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.out = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, seen = self.conv(self.into(x)).chunk(2, 1)
        return self.out(F.gelu(gate) * seen)


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, window: int, expansion: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.attention, self.mlp = FusedAttention(dim, num_heads, window), _Gated(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MetalensMetaFormer(nn.Module):
    """Restorer of one lens's pictures, (B, 3, H, W) of its whole field to the same; RGB in [0, 1].

    Args:
        scale: 1; it does not enlarge.
        kernels: point spread functions of the lens in rings from the middle to the corners, (rings, 3, k, k), odd k;
            None for an ideal lens, until those of a real one are loaded into `bank.kernels`.
        ratios: r of each Wiener filter; none for a network that sees the picture only.
        dim: channels of the first level.
        depths: blocks of each level on the way down; all but the deepest have as many on the way up.
        num_heads: heads of each level.
        window: w.
        expansion: ratio of the hidden width of GDFN to the width.

    Raises:
        ValueError: another scale, or levels without heads.
    """

    def __init__(
        self,
        scale: int = 1,
        *,
        kernels: Tensor | None = None,
        ratios: Sequence[float] = RATIOS,
        dim: int = 32,
        depths: Sequence[int] = (2, 4, 4),
        num_heads: Sequence[int] = (1, 2, 4),
        window: int = 8,
        expansion: float = 2.0,
    ) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"MetaFormer restores at the same size, scale 1, got {scale}")
        if len(depths) != len(num_heads):
            raise ValueError(f"give heads for each of {len(depths)} levels, got {len(num_heads)} numbers of heads")

        def blocks(level: int) -> nn.Sequential:
            width, heads = dim * 2**level, num_heads[level]
            return nn.Sequential(*(_Block(width, heads, window, expansion) for _ in range(depths[level])))

        self.bank = WienerBank(_ideal() if kernels is None else kernels, ratios) if ratios else None
        widths = [dim * 2**i for i in range(len(depths) - 1)]
        self.multiple = window * 2 ** len(widths)
        self.head = nn.Conv2d(3 * (1 + len(ratios)), dim, 3, padding=1)
        self.encoder = nn.ModuleList(blocks(i) for i in range(len(depths)))
        self.down = nn.ModuleList(nn.Conv2d(4 * c, 2 * c, 1) for c in widths)
        self.up = nn.ModuleList(nn.Conv2d(2 * c, 4 * c, 1) for c in widths)
        self.join = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in widths)
        self.decoder = nn.ModuleList(blocks(i) for i in range(len(widths)))
        self.tail = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        seen = x if self.bank is None else torch.cat([x, self.bank(x)], 1)
        seen = F.pad(seen, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        y, kept = self.encoder[0](self.head(seen)), []
        for down, encode in zip(self.down, self.encoder[1:], strict=True):
            kept.append(y)
            y = encode(down(F.pixel_unshuffle(y, 2)))
        for i in reversed(range(len(self.up))):
            y = self.decoder[i](self.join[i](torch.cat([F.pixel_shuffle(self.up[i](y), 2), kept[i]], 1)))
        return x + self.tail(y)[..., :height, :width]


def _ideal() -> Tensor:
    """A lens without blur, five rings; as large as those of a blur of 3 pixels."""
    return F.pad(torch.ones(5, 3, 1, 1), (12,) * 4)


METHOD = Method(
    id=163,
    name="Metalens-MetaFormer",
    kind="model",
    summary="Several Wiener filters of a poor lens's picture, put together by attention among pixels and channels.",
    paper=Paper(
        "MetaFormer: High-fidelity Metalens Imaging via Aberration Correcting Transformers",
        "B. Lee et al.",
        2024,
        "arXiv:2412.04591",
    ),
    models={"metalens_metaformer": MetalensMetaFormer},
    cases={"metalens_metaformer": {"dim": 4, "depths": (1, 1), "num_heads": (1, 2), "window": 4}},
)
