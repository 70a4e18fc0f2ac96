"""DAT: attention among the pixels of windows and attention among channels take turns, each helped by a convolution.

*Source*: Z. Chen et al., "Dual Aggregation Transformer for Image Super-Resolution", ICCV 2023 (arXiv:2308.03364),
section 3. A 3×3 convolution to C features, a norm, groups of blocks with a convolution and a skip, a norm, a
convolution, a skip around all of it, and pixel shuffles. A block on x: (B, H, W, C) is x + attention(norm x), then
x + SGFN(norm x):

    spatial:  A = softmax(q kᵀ / √d + bias) v in windows: half of the heads in h × w, half in w × h, shifted by turns
              W (A ⊙ σ(c(D)) + D ⊙ σ(s(A)))
    channel:  A = softmax(τ q̂ᵀ k̂) v among the d channels of a head, columns of q̂ and k̂ of length 1
              W (A ⊙ σ(s(D)) + D ⊙ σ(c(A)))
    D = gelu(BN(depthwise 3×3 of v)); c: (C,) from the mean over pixels, s: (H, W), two 1×1 convolutions each (AIM)
    SGFN:     W₂ (a ⊙ (K * norm b)),  [a, b] = gelu(W₁ x), K: depthwise 3×3

The bias of an offset in a window is computed by a small network from the offset.

*Differs from the paper*: no stochastic depth. Queries, keys and values are padded with zeros up to a multiple of the
window's longer side, and padding takes part in attention, as in the authors' code.

*Provenance*: written from the paper; sizes, the order of shifts, the padding and initial weights were looked up in the
authors' code. The three sizes equal spandrel's to 2e-6 under shared weights, at sides that windows do not divide.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import gen_relative_position_index
from torch import Tensor, nn

from foveal.nn.windows import window_attention
from foveal.record import Method, Paper

__all__ = ["DAT", "ChannelAttention", "SpatialAttention", "dat_light", "dat_s"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K
TAIL = 64  # width between pixel shuffles
KINDS = ("spatial", "channel")


class _PositionBias(nn.Module):
    """Bias between any two tokens of a window, computed from their offset.

    Args:
        dim: width of the attention.
        num_heads: number of heads.
        window: h and w.
    """

    offsets: Tensor
    index: Tensor

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        inner = max(1, dim // 16)
        self.pos_proj = nn.Linear(2, inner)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(inner), nn.ReLU(), nn.Linear(inner, out)) for out in (inner, inner, num_heads)
        )
        rows, columns = (torch.arange(1 - side, side) for side in window)
        self.register_buffer("offsets", torch.cartesian_prod(rows, columns).float(), persistent=False)
        self.register_buffer("index", gen_relative_position_index(window), persistent=False)

    def forward(self) -> Tensor:
        """(heads, h·w, h·w)."""
        table = self.pos3(self.pos2(self.pos1(self.pos_proj(self.offsets))))
        return table[self.index].permute(2, 0, 1)


class _Aggregated(nn.Module):
    """What both kinds of attention share: projections, the convolution, and the maps by which the branches gate."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dwconv = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.BatchNorm2d(dim), nn.GELU())
        self.channel_interaction = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self._two(dim, max(1, dim // 8), dim))
        self.spatial_interaction = self._two(dim, max(1, dim // 16), 1)

    @staticmethod
    def _two(dim: int, inner: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(dim, inner, 1), nn.BatchNorm2d(inner), nn.GELU(), nn.Conv2d(inner, out, 1))

    def local(self, value: Tensor) -> Tensor:
        """D, (B, H, W, C) to (B, C, H, W)."""
        return self.dwconv(value.permute(0, 3, 1, 2))

    def joined(self, by_channel: Tensor, by_place: Tensor) -> Tensor:
        """The branches (B, C, H, W), each gated by the other and projected, (B, H, W, C).

        Args:
            by_channel: branch that a map over channels gates.
            by_place: branch that a map over pixels gates.

        Returns:
            (B, H, W, C).
        """
        channels, places = self.channel_interaction(by_place), self.spatial_interaction(by_channel)
        both = by_channel * torch.sigmoid(channels) + by_place * torch.sigmoid(places)
        return self.proj(both.permute(0, 2, 3, 1))


class SpatialAttention(_Aggregated):
    """Attention in windows, (B, H, W, C) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of heads, even.
        window: h and w; half of the heads have windows of w and h.
        shifted: whether windows are shifted by half their sides.

    Raises:
        ValueError: an odd number of heads, or a width that they do not divide.
    """

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], *, shifted: bool = False) -> None:
        if num_heads % 2 or dim % num_heads:
            raise ValueError(f"num_heads must be even and divide dim = {dim}, got {num_heads}")
        super().__init__(dim)
        self.num_heads, self.windows = num_heads, (window, window[::-1])
        self.shifts = tuple((h // 2, w // 2) if shifted else (0, 0) for h, w in self.windows)
        self.pos = nn.ModuleList(_PositionBias(dim // 2, num_heads // 2, sides) for sides in self.windows)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        qkv, longer = self.qkv(x), max(self.windows[0])
        padded = F.pad(qkv, (0, 0, 0, -width % longer, 0, -height % longer))
        # (B, H, W, C / 2) each, for q, k, v and the two halves
        q, k, v = (part.chunk(2, -1) for part in padded.chunk(3, -1))
        halves = [
            window_attention(
                q[i],
                k[i],
                v[i],
                window=self.windows[i],
                num_heads=self.num_heads // 2,
                shift=self.shifts[i],
                bias=bias(),
            )
            for i, bias in enumerate(self.pos)
        ]
        attended = torch.cat(halves, -1)[:, :height, :width].permute(0, 3, 1, 2)
        return self.joined(attended, self.local(qkv.chunk(3, -1)[2]))


class ChannelAttention(_Aggregated):
    """Attention among the channels of each head, (B, H, W, C) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of heads.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        super().__init__(dim)
        self.num_heads, self.temperature = num_heads, nn.Parameter(torch.ones(num_heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1)
        # (B, heads, C / heads, H·W) each
        q, k, v = (part.flatten(1, 2).mT.unflatten(1, (self.num_heads, -1)) for part in parts)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature
        local = self.local(parts[2])
        attended = (scores.softmax(-1) @ v).flatten(1, 2).view_as(local)
        return self.joined(local, attended)


class _FeedForward(nn.Module):
    """SGFN, (B, H, W, C) to the same."""

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        half = int(dim * expansion) // 2
        self.fc1, self.fc2 = nn.Linear(dim, 2 * half), nn.Linear(half, dim)
        self.norm, self.conv = nn.LayerNorm(half), nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.gelu(self.fc1(x)).chunk(2, -1)
        return self.fc2(a * self.conv(self.norm(b).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class _Block(nn.Module):
    """(B, H, W, C) to the same."""

    def __init__(self, dim: int, attn: nn.Module, expansion: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.ffn = attn, _FeedForward(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def _last(dim: int, *, light: bool) -> nn.Module:
    """The convolution at the end of a group, (B, C, H, W) to the same; a light one is narrow in the middle."""
    if not light:
        return nn.Conv2d(dim, dim, 3, padding=1)
    inner = dim // 4
    convs = nn.Conv2d(dim, inner, 3, padding=1), nn.Conv2d(inner, inner, 1), nn.Conv2d(inner, dim, 3, padding=1)
    return nn.Sequential(convs[0], nn.LeakyReLU(0.2), convs[1], nn.LeakyReLU(0.2), convs[2])


class _Group(nn.Module):
    """(B, H, W, C) to the same."""

    def __init__(self, blocks: list[nn.Module], conv: nn.Module) -> None:
        super().__init__()
        self.blocks, self.conv = nn.Sequential(*blocks), conv

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DAT(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s: 2, 3 or 4.
        dim: width, a multiple of `num_heads`.
        depths: number of blocks of each group.
        num_heads: number of heads, even.
        window: h and w of half of the heads, w and h of the others.
        expansion: ratio of a feed-forward's hidden width to `dim`.
        kinds: kinds of attention, which take turns in each group: "spatial", "channel".
        light: whether the last convolutions of groups are narrow in the middle and one convolution makes the picture.
        in_channels: C.

    Raises:
        ValueError: another scale, or no or another kind of attention.
    """

    mean: Tensor
    tiling = "overlap"  # channels attend to each other over the whole picture

    def __init__(
        self,
        scale: int = 4,
        *,
        dim: int = 180,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        num_heads: int = 6,
        window: tuple[int, int] = (8, 32),
        expansion: float = 4,
        kinds: tuple[str, ...] = KINDS,
        light: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        factors = {2: (2,), 3: (3,), 4: (2, 2)}.get(scale)
        if factors is None:
            raise ValueError(f"scale must be 2, 3 or 4, got {scale}")
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds must be one or more of {', '.join(KINDS)}, got {kinds}")
        self.scale = scale
        self.multiple = max(window)  # tiles start at the borders of windows
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.first_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.layers = nn.Sequential()
        for group, depth in enumerate(depths):
            turn = group  # every second spatial block is shifted, in odd groups the first one
            blocks: list[nn.Module] = []
            for i in range(depth):
                if kinds[i % len(kinds)] == "spatial":
                    attn: nn.Module = SpatialAttention(dim, num_heads, window, shifted=turn % 2 == 1)
                    turn += 1
                else:
                    attn = ChannelAttention(dim, num_heads)
                blocks.append(_Block(dim, attn, expansion))
            self.layers.append(_Group(blocks, _last(dim, light=light)))
        self.conv_after_body = _last(dim, light=light)
        if light:
            self.tail = nn.Sequential(nn.Conv2d(dim, in_channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        else:
            self.tail = nn.Sequential(nn.Conv2d(dim, TAIL, 3, padding=1), nn.LeakyReLU())
            for factor in factors:
                self.tail.extend([nn.Conv2d(TAIL, TAIL * factor**2, 3, padding=1), nn.PixelShuffle(factor)])
            self.tail.append(nn.Conv2d(TAIL, in_channels, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first(x - self.mean)
        # (B, H, W, C) inside
        features = self.norm(self.layers(self.first_norm(first.permute(0, 2, 3, 1))))
        return self.tail(first + self.conv_after_body(features.permute(0, 3, 1, 2))) + self.mean


# DAT is `DAT` itself.
dat_s = partial(DAT, window=(8, 16), expansion=2)  # DAT-S
dat_light = partial(DAT, dim=60, depths=(18,), expansion=2, light=True)  # DAT-light


METHOD = Method(
    id=202,
    name="DAT",
    kind="model",
    summary="Attention among the pixels of windows and attention among channels take turns.",
    paper=Paper("Dual Aggregation Transformer for Image Super-Resolution", "Z. Chen et al.", 2023, "arXiv:2308.03364"),
    models={"dat": DAT, "dat_s": dat_s, "dat_light": dat_light},
    cases={
        "dat": {"scale": 2, "dim": 8, "depths": (3, 2), "num_heads": 2, "window": (2, 4)},
        "dat_s": {"scale": 3, "dim": 8, "depths": (2,), "num_heads": 2, "window": (2, 4)},
        "dat_light": {"scale": 2, "dim": 8, "depths": (2,), "num_heads": 2, "window": (2, 4)},
    },
)
