"""Histoformer: attention among pixels of like brightness, wherever they are, for pictures taken in bad weather.

*Source*: S. Sun et al., "Restoring Images in Adverse Weather Conditions via Histogram Transformer", ECCV 2024
(arXiv:2407.10172), section 3; sizes of the authors' code (sunshangquan/Histoformer). Weather adds or takes light where
it falls, so it is told by value rather than by place. A block, x: (B, C, H, W), N = H·W:

    y = x + DHSA(norm(x));   z = y + DGFF(norm(y))

DHSA sorts the pixels of the first C/2 channels along columns, then along rows (dynamic-range convolution), makes
q₁, k₁, q₂, k₂, v from them by a 1×1 and a depthwise 3×3 convolution, and sorts the pixels of each channel of v by
value; queries and keys are permuted alike. The sorted pixels, cut in b bins, attend as tokens of unit length,
(B, heads, C/heads·b, ⌈N/b⌉):

    A(q, k, v) = softmax₁(t · q kᵀ) v,   softmax₁(s)ᵢ = exp(sᵢ) / (1 + Σⱼ exp(sⱼ))
    DHSA = undo( W ( scatter A(q₁, k₁, v; across bins) ∘ scatter A(q₂, k₂, v; within bins) ) )

Across bins, a token is a bin of ⌈N/b⌉ neighbours in brightness; within bins, it is a place in bins of b neighbours.
Both cost O(N) for fixed b. DGFF shuffles features to twice the side, gates a 5×5 by a dilated 3×3 depthwise
convolution, and shuffles back. Each level of the U has a quarter of the positions and twice the channels of the one
above, and the picture's averages are joined on the way down. Training adds `correlation_loss` to the absolute error.

*Differs from the paper*: the picture is padded to a multiple of 2^(levels - 1) and cut afterwards.

*Provenance*: written from the paper; b is the number of heads, as in the authors' code. Equals that code under shared
weights to 5e-16 in float64; in float32, pixels that are equal but for rounding may change places, and outputs differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

__all__ = [
    "Histoformer",
    "HistogramAttention",
    "binned",
    "correlation_loss",
    "dynamic_range",
    "softmax_one",
    "sort_attend_scatter",
    "unbinned",
]


def dynamic_range(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Sort the pixels of each column by value, then those of each row.

    Args:
        x: (B, C, H, W).

    Returns:
        The sorted map, and the function that takes a map of the same shape back to where the pixels came from.
    """
    down, rows = x.sort(-2)
    across, columns = down.sort(-1)

    def undo(y: Tensor) -> Tensor:
        y = torch.zeros_like(y).scatter(-1, columns, y)
        return torch.zeros_like(y).scatter(-2, rows, y)

    return across, undo


def binned(x: Tensor, bins: int, *, within: bool) -> Tensor:
    """Sorted pixels as tokens; the last bin is filled up with zeros.

    Args:
        x: (..., C, N).
        bins: b.
        within: whether a token is a place in bins of b pixels, not one of b bins.

    Returns:
        (..., C·b, ⌈N/b⌉).
    """
    x = F.pad(x, (0, -x.shape[-1] % bins))
    tokens = x.unflatten(-1, (-1, bins)).transpose(-1, -2) if within else x.unflatten(-1, (bins, -1))
    return tokens.flatten(-3, -2)


def unbinned(tokens: Tensor, bins: int, length: int, *, within: bool) -> Tensor:
    """Inverse of `binned`.

    Args:
        tokens: (..., C·b, ⌈N/b⌉).
        bins: b.
        length: N.
        within: as in `binned`.

    Returns:
        (..., C, N).
    """
    x = tokens.unflatten(-2, (-1, bins))
    return (x.transpose(-1, -2) if within else x).flatten(-2)[..., :length]


def softmax_one(scores: Tensor) -> Tensor:
    """Softmax beside a score of zero that nothing answers to, so that weights may sum to less than 1.

    Args:
        scores: (..., N).

    Returns:
        (..., N).
    """
    return F.softmax(F.pad(scores, (0, 1)), -1)[..., :-1]


def sort_attend_scatter(
    query: Tensor, key: Tensor, value: Tensor, order: Tensor, attend: Attend, *, bins: int, within: bool
) -> Tensor:
    """Attention among bins of sorted pixels, whose results go back to where the pixels came from.

    Args:
        query: (B, heads, C, N).
        key: the same.
        value: the same.
        order: permutation of the pixels of each channel, the same shape; usually `value.argsort(-1)`.
        attend: function from queries, keys and values, (B, heads, C·b, ⌈N/b⌉) each, to the last's shape.
        bins: b.
        within: as in `binned`.

    Returns:
        (B, heads, C, N).
    """
    tokens = (binned(x.gather(-1, order), bins, within=within) for x in (query, key, value))
    out = unbinned(attend(*tokens), bins, value.shape[-1], within=within)
    return torch.zeros_like(out).scatter(-1, order, out)


def correlation_loss(out: Tensor, target: Tensor) -> Tensor:
    """(1 - Pearson's correlation) / 2 of each picture: 0 for pictures that are equal up to brightness and contrast.

    Args:
        out: (B, C, H, W).
        target: the same.

    Returns:
        Mean over the pictures, in [0, 1].
    """
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (out, target))
    correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
    return ((1 - correlation) / 2).mean()


class HistogramAttention(nn.Module):
    """DHSA, (B, C, H, W) to the same.

    Args:
        dim: C, even.
        num_heads: heads, a divisor of C.
        bins: b; as many as heads by default.

    Raises:
        ValueError: an odd number of channels, or one that the heads do not divide.
    """

    def __init__(self, dim: int, num_heads: int, *, bins: int | None = None) -> None:
        super().__init__()
        if dim % 2 or dim % num_heads:
            raise ValueError(f"dim must be even and a multiple of num_heads = {num_heads}, got {dim}")
        self.num_heads, self.bins = num_heads, bins or num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 5 * dim, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(5 * dim, 5 * dim, 3, padding=1, groups=5 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT
        return softmax_one(scores * self.temperature) @ value

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        first, undo = dynamic_range(first)
        seen = self.qkv_dwconv(self.qkv(torch.cat([first, second], 1)))
        # (B, C, H, W) to (B, heads, C / heads, N)
        q1, k1, q2, k2, v = (t.flatten(2).unflatten(1, (self.num_heads, -1)) for t in seen.chunk(5, 1))
        order = v.argsort(-1)
        across = sort_attend_scatter(q1, k1, v, order, self._attend, bins=self.bins, within=False)
        inside = sort_attend_scatter(q2, k2, v, order, self._attend, bins=self.bins, within=True)
        first, second = self.project_out((across * inside).view_as(x)).chunk(2, 1)
        return torch.cat([undo(first), second], 1)


class _FeedForward(nn.Module):
    """DGFF, (B, C, H, W) to the same; the hidden width is a multiple of 4."""

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        part = max(1, int(dim * expansion) // 4)
        self.project_in = nn.Conv2d(dim, 8 * part, 1, bias=False)
        self.dwconv_5 = nn.Conv2d(part, part, 5, padding=2, groups=part, bias=False)
        self.dwconv_dilated2_1 = nn.Conv2d(part, part, 3, padding=2, dilation=2, groups=part, bias=False)
        self.project_out = nn.Conv2d(4 * part, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 2 · part, 2H, 2W)
        seen, gate = F.pixel_shuffle(self.project_in(x), 2).chunk(2, 1)
        mixed = F.mish(self.dwconv_dilated2_1(gate)) * self.dwconv_5(seen)
        return self.project_out(F.pixel_unshuffle(mixed, 2))


def _norm(x: Tensor) -> Tensor:
    """The channels of each pixel with mean 0 and variance 1."""
    centred = x - x.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-5)


class _Block(nn.Module):
    def __init__(self, dim: int, attention: nn.Module, expansion: float) -> None:
        super().__init__()
        self.attn_g = attention
        self.ffn = _FeedForward(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn_g(_norm(x))
        return x + self.ffn(_norm(x))


def _skip() -> nn.Sequential:
    """The picture at half the side."""
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
    )


class Histoformer(nn.Module):
    """Restoration network, (B, 3, H, W) to the same, of any H and W; RGB in [0, 1].

    Args:
        scale: 1; it does not enlarge.
        dim: channels of the first level, a multiple of 2 and of its heads.
        depths: blocks of each level on the way down; those on the way up are as many.
        num_heads: heads of each level.
        refinement: blocks at the end, on the first level.
        expansion: ratio of the hidden width of DGFF to the width.
        attention: builder from width and heads to a module, (B, C, H, W) to the same.

    Raises:
        ValueError: another scale, or levels without heads.
    """

    def __init__(
        self,
        scale: int = 1,
        *,
        dim: int = 36,
        depths: Sequence[int] = (4, 4, 6, 8),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        refinement: int = 4,
        expansion: float = 2.667,
        attention: Callable[[int, int], nn.Module] = HistogramAttention,
    ) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"Histoformer restores at the same size, scale 1, got {scale}")
        if len(depths) != len(num_heads):
            raise ValueError(f"give heads for each of {len(depths)} levels, got {len(num_heads)} numbers of heads")

        def blocks(level: int, depth: int, width: int) -> nn.Sequential:
            return nn.Sequential(*(_Block(width, attention(width, num_heads[level]), expansion) for _ in range(depth)))

        below = range(1, len(depths))
        self.patch_embed = nn.Conv2d(3, dim, 3, padding=1, bias=False)
        self.down = nn.ModuleList(_resized(dim * 2 ** (i - 1), nn.PixelUnshuffle(2)) for i in below)
        self.skip = nn.ModuleList(_skip() for _ in below)
        self.join = nn.ModuleList(nn.Conv2d(dim * 2**i + 3, dim * 2**i, 1, bias=False) for i in below)
        self.encoder = nn.ModuleList(blocks(i, depth, dim * 2**i) for i, depth in enumerate(depths))
        self.up = nn.ModuleList(_resized(dim * 2**i, nn.PixelShuffle(2)) for i in below)
        # On the first level both halves are kept: its width on the way up is twice that on the way down.
        wide = [dim * 2 ** max(1, i) for i in range(len(depths) - 1)]
        self.reduce = nn.ModuleList(
            nn.Conv2d(dim * 2 ** (i + 1), w, 1, bias=False) if i else nn.Identity() for i, w in enumerate(wide)
        )
        self.decoder = nn.ModuleList(blocks(i, depths[i], w) for i, w in enumerate(wide))
        last = wide[0] if wide else dim
        self.refinement = blocks(0, refinement, last)
        self.output = nn.Conv2d(last, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        multiple = 2 ** len(self.down)
        seen = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        y, picture, kept = self.encoder[0](self.patch_embed(seen)), seen, []
        for down, skip, join, encode in zip(self.down, self.skip, self.join, self.encoder[1:], strict=True):
            kept.append(y)
            picture = skip(picture)
            y = encode(join(torch.cat([down(y), picture], 1)))
        for i in reversed(range(len(self.up))):
            y = self.decoder[i](self.reduce[i](torch.cat([self.up[i](y), kept[i]], 1)))
        return (seen + self.output(self.refinement(y)))[..., :height, :width]


def _resized(dim: int, shuffle: nn.Module) -> nn.Sequential:
    """A 3×3 convolution and a shuffle to half the side and twice the channels, or the reverse."""
    out = dim // 2 if isinstance(shuffle, nn.PixelUnshuffle) else 2 * dim
    return nn.Sequential(nn.Conv2d(dim, out, 3, padding=1, bias=False), shuffle)


METHOD = Method(
    id=260,
    name="Histoformer",
    kind="model",
    summary="Pixels of like brightness attend to one another, wherever they are, to clear pictures of weather.",
    paper=Paper(
        "Restoring Images in Adverse Weather Conditions via Histogram Transformer",
        "S. Sun et al.",
        2024,
        "arXiv:2407.10172",
    ),
    models={"histoformer": Histoformer},
    cases={"histoformer": {"dim": 4, "depths": (1, 1), "num_heads": (1, 2), "refinement": 1}},
)
