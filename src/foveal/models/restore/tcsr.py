"""TCSR: attention to the k×k neighbourhood of each pixel in place of large kernels, and a feed-forward that shifts.

*Source*: G. Wu et al., "Incorporating Transformer Designs into Convolutions for Lightweight Image Super-Resolution",
2023 (arXiv:2303.14324), read in abstract and introduction; the authors' repository holds results and no code. A 3×3
convolution to C features, groups of blocks with a 3×3 convolution and a skip, a 3×3 convolution, a skip around all of
it, a 3×3 convolution and a pixel shuffle. A block, x: (B, H, W, C):

    x + NA(norm x), then x + W₂ gelu(shift(W₁ norm x))                shift: eighths of the channels by one pixel
    NA:  softmaxₙ(q_p · k_n / √d + bias_{n - p}) v_n over the k² pixels n around p;  (q, k, v) = W x, d = C / heads

A large kernel has k² C² weights, or k² C for each channel apart; NA has 4 C² and (2k - 1)² numbers for each head,
whatever it sees. At the border the neighbourhood is moved inward, see `foveal.nn.neighbourhood`.

Neighbourhoods of t×t pixels lie in a square of (t + k - 1)², so attention goes tile by tile: matrix products of t²
queries with that square, -∞ outside of each neighbourhood. Some rows of tiles are in memory at a time.

*Differs from the paper*: the sizes could not be read. Widths and depths are chosen here so that the networks have as
many parameters as TCSR-B and TCSR-L to 2 %; blocks, groups and the ratio of 2 are those of SwinIR, whose last norm is
left out, because the features then start near those of the first convolution and a short training gets further; the
eight directions of the shift are those of the same authors' next paper (arXiv:2307.16140).

*Provenance*: written from the abstract; neighbourhood attention as in the papers that `foveal.nn.neighbourhood` names.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.channel_shift import DIRECTIONS, shift8
from foveal.record import Method, Paper

__all__ = ["TCSR", "NeighbourhoodAttention", "ShiftFeedForward", "neighbourhood_attention", "tcsr_l"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K
TILES = 256  # of a map that are worked on at a time, and at least one row of them


class _Axis(NamedTuple):
    """Tiles along one axis: queries (T, t) and keys (T, s) by number, and the offset of each pair (T, t, s)."""

    queries: Tensor
    keys: Tensor
    offset: Tensor


def _along(length: int, kernel_size: int, tile: int, device: torch.device) -> _Axis:
    """Cut an axis into tiles; the offset is an index into a side of the table, 2k - 1 if the key is not seen."""
    last, side = torch.arange(length, device=device)[-1:], tile + kernel_size - 1
    first = torch.arange(0, length, tile, device=device)[:, None]
    queries = torch.minimum(first + torch.arange(tile, device=device), last)
    keys = torch.minimum(first - kernel_size // 2, last + 1 - side).clamp_min(0) + torch.arange(side, device=device)
    start = torch.minimum(queries - kernel_size // 2, last + 1 - kernel_size).clamp_min(0)[..., None]
    offset = keys[:, None] - queries[..., None] + kernel_size - 1
    seen = keys[:, None]
    inside = (seen >= start) & (seen < start + kernel_size) & (seen <= last)
    return _Axis(queries, torch.minimum(keys, last), torch.where(inside, offset, 2 * kernel_size - 1))


def _tiled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Tiles of a map, (B, heads, H, W, d) to (B, heads, R, T, h·w, d), from rows (R, h) and columns (T, w)."""
    part = x.index_select(2, rows.flatten()).index_select(3, columns.flatten())
    return part.unflatten(3, columns.shape).unflatten(2, rows.shape).transpose(3, 4).flatten(4, 5)


def _strips(query: Tensor, key: Tensor, value: Tensor, table: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Attention of some rows of tiles, (B, heads, R·t, T·t, d), with a table that ends in -∞."""
    # (heads, R, t, s of rows, T, t, s of columns) to (heads, R, T, t², s²)
    bias = table.index_select(1, rows.offset.flatten()).index_select(2, columns.offset.flatten())
    bias = bias.unflatten(2, columns.offset.shape).unflatten(1, rows.offset.shape).permute(0, 1, 4, 2, 5, 3, 6)
    bias = bias.flatten(5, 6).flatten(3, 4)
    q = _tiled(query, rows.queries, columns.queries)
    k, v = (_tiled(x, rows.keys, columns.keys) for x in (key, value))
    out = (q @ k.mT + bias).softmax(-1) @ v
    tile = rows.queries.shape[1]
    return out.unflatten(4, (tile, tile)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def neighbourhood_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, tile: int = 4) -> Tensor:
    """Attention of each pixel to the k×k pixels around it, in memory linear in pixels.

    Args:
        query: queries, (B, heads, H, W, d), scaled.
        key: keys, (B, heads, H, W, d).
        value: values, (B, heads, H, W, d).
        bias: relative position bias, (heads, 2k - 1, 2k - 1), k odd.
        tile: t, side of a tile of queries.

    Returns:
        (B, heads, H, W, d).
    """
    height, width = query.shape[2:4]
    kernel_size = (bias.shape[-1] + 1) // 2
    rows, columns = (_along(length, kernel_size, tile, query.device) for length in (height, width))
    table = F.pad(bias, (0, 1, 0, 1), value=float("-inf"))
    if torch.compiler.is_exporting():  # a graph whose height is open has no loop
        out = _strips(query, key, value, table, rows, columns)
    else:
        parts = zip(*(x.split(max(1, TILES // len(columns.queries))) for x in rows), strict=True)
        out = torch.cat([_strips(query, key, value, table, _Axis(*part), columns) for part in parts], 2)
    return out[:, :, :height, :width]


class NeighbourhoodAttention(nn.Module):
    """NA, (B, H, W, C) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of heads.
        kernel_size: k, odd.
        tile: side of a tile of queries; the result does not depend on it.

    Raises:
        ValueError: an even kernel, or a width that the heads do not divide.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int, *, tile: int = 4) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        self.num_heads, self.tile = num_heads, tile
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        # (3, B, heads, H, W, d)
        query, key, value = self.qkv(x).unflatten(3, (3, self.num_heads, -1)).permute(3, 0, 4, 1, 2, 5)
        scaled = query * query.shape[-1] ** -0.5
        out = neighbourhood_attention(scaled, key, value, self.bias, tile=self.tile)
        return self.proj(out.permute(0, 2, 3, 1, 4).flatten(3))


class ShiftFeedForward(nn.Module):
    """EFFN, (B, H, W, C) to the same.

    Args:
        dim: C.
        expansion: ratio of the hidden width to C; the hidden width is a multiple of 8.

    Raises:
        ValueError: a hidden width that eight groups cannot share.
    """

    def __init__(self, dim: int, expansion: float = 2) -> None:
        super().__init__()
        inner = round(expansion * dim)
        if inner % len(DIRECTIONS):
            raise ValueError(
                f"expansion times dim must be a multiple of {len(DIRECTIONS)}, got {expansion} times {dim}"
            )
        self.fc1, self.fc2 = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        moved = shift8(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(moved))


class _Block(nn.Module):
    """(B, H, W, C) to the same."""

    def __init__(self, dim: int, num_heads: int, kernel_size: int, expansion: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = NeighbourhoodAttention(dim, num_heads, kernel_size)
        self.mlp = ShiftFeedForward(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Group(nn.Module):
    """(B, H, W, C) to the same."""

    def __init__(self, dim: int, depth: int, num_heads: int, kernel_size: int, expansion: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(dim, num_heads, kernel_size, expansion) for _ in range(depth)))
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class TCSR(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    The defaults are those of the smaller network, TCSR-B.

    Args:
        scale: s, at least 1.
        dim: width, a multiple of `num_heads`.
        depths: number of blocks of each group.
        num_heads: number of heads.
        kernel_size: side of a neighbourhood, odd.
        expansion: ratio of a feed-forward's hidden width to `dim`.
        in_channels: C.

    Raises:
        ValueError: if the scale is below 1.
    """

    mean: Tensor
    tiling = "overlap"

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 60,
        depths: tuple[int, ...] = (4, 4, 4, 4),
        num_heads: int = 4,
        kernel_size: int = 9,
        expansion: float = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale = scale
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.layers = nn.Sequential(*(_Group(dim, n, num_heads, kernel_size, expansion) for n in depths))
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsample = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first(x - self.mean)
        # (B, H, W, C) inside
        features = self.layers(first.permute(0, 2, 3, 1))
        out = self.upsample(first + self.conv_after_body(features.permute(0, 3, 1, 2)))
        return F.pixel_shuffle(out, self.scale) + self.mean


# TCSR-B is `TCSR` itself.
tcsr_l = partial(TCSR, depths=(7, 7, 7, 7))  # TCSR-L


METHOD = Method(
    id=68,
    name="TCSR",
    kind="model",
    summary="Each pixel attends to its k×k neighbourhood in place of a large kernel; the feed-forward shifts channels.",
    paper=Paper(
        "Incorporating Transformer Designs into Convolutions for Lightweight Image Super-Resolution",
        "G. Wu et al.",
        2023,
        "arXiv:2303.14324",
    ),
    models={"tcsr_b": TCSR, "tcsr_l": tcsr_l},
    cases={
        "tcsr_b": {"scale": 2, "dim": 8, "depths": (1, 1), "num_heads": 2, "kernel_size": 3},
        "tcsr_l": {"scale": 1, "dim": 4, "depths": (1,), "num_heads": 1, "kernel_size": 3},
    },
)
