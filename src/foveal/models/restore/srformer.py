"""SRFormer: attention in large windows whose keys and values are folded r×r to one, at the cost of small windows.

*Source*: Y. Zhou et al., "SRFormer: Permuted Self-Attention for Single Image Super-Resolution", ICCV 2023
(arXiv:2303.09735), section 3. A 3×3 convolution to C features, a norm, groups of blocks with a 3×3 convolution and a
skip, a norm, a 3×3 convolution, a skip around all of it, a 3×3 convolution and a pixel shuffle. A block, every second
one with shifted windows:

    x + PSA(norm x), then x + W₂ (z + gelu(D * z))        z = gelu(W₁ norm x), D: depthwise 5×5 (ConvFFN)
    PSA: softmax(q kᵀ / √d + bias) v in each window       q: (N, C), k and v: (N / r², C), C = heads · d

Keys and values are made with C / r² channels, and r×r tokens are put beside each other as C channels (the permutation).
The r×r queries of such a group share the bias towards each key. With r = 1 it is attention in windows.

*Differs from the paper*: no stochastic depth. Pictures are reflected up to a multiple of the window, as in the authors'
code; where they are smaller than what is added, the edge is repeated.

*Provenance*: written from the paper; sizes, the order of the permuted channels and initial weights were looked up in
the authors' code. Under shared weights the light network equals that code to 1e-6 at 45×67, ×2 and ×4.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import RelPosBias
from torch import Tensor, nn

from foveal.nn.windows import attention, hidden, joined, regions, to_multiple, windowed
from foveal.record import Method, Paper

__all__ = ["PermutedAttention", "SRFormer", "SRFormerBlock"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K


class PermutedAttention(nn.Module):
    """PSA, (B, H, W, C) to the same; H and W are multiples of the window.

    Args:
        dim: C, a multiple of `num_heads` and of r².
        num_heads: number of heads.
        window: side of a window, a multiple of r.
        reduction: r.
        shift: rows and columns by which the windows are shifted, a multiple of r, less than `window`.

    Raises:
        ValueError: sizes that do not divide each other.
    """

    def __init__(self, dim: int, num_heads: int, window: int, *, reduction: int = 2, shift: int = 0) -> None:
        super().__init__()
        r = reduction
        if dim % num_heads or dim % r**2:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads} and of r² = {r**2}, got {dim}")
        if window % r or shift % r or not 0 <= shift < window:
            raise ValueError(
                f"window and shift must be multiples of r = {r} with 0 ≤ shift < window, got {window} and {shift}"
            )
        self.num_heads, self.window, self.reduction, self.shift = num_heads, window, r, shift
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim // r**2), nn.Linear(dim, dim)
        self.bias = RelPosBias((window // r, window // r), num_heads)

    def _folded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values from (B · windows, N, 2C / r²), (B · windows, N / r², C) each."""
        r, side = self.reduction, self.window // self.reduction
        # (B · windows, side, r, side, r, 2, C / r²)
        apart = x.unflatten(1, (side, r, side, r)).unflatten(-1, (2, -1))
        key, value = apart.permute(5, 0, 1, 3, 2, 4, 6).flatten(4).flatten(2, 3).unbind(0)
        return key, value

    def _bias(self) -> Tensor:
        """(heads, N, N / r²)."""
        r, side = self.reduction, self.window // self.reduction
        shared = self.bias.get_bias()[0].unflatten(1, (side, side))
        return shared.repeat_interleave(r, 1).repeat_interleave(r, 2).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        r, window, shift = self.reduction, (self.window,) * 2, (self.shift,) * 2
        if height % self.window or width % self.window:
            raise ValueError(
                f"H and W must be multiples of window = {self.window}, got {height} and {width}; pad with "
                "foveal.nn.windows.to_multiple"
            )
        mask = None
        if self.shift:
            queries = regions(height, width, window, shift, device=x.device)
            fewer = (self.window // r,) * 2, (self.shift // r,) * 2
            keys = regions(height // r, width // r, *fewer, device=x.device)
            mask = hidden(queries, keys, dtype=x.dtype)
        query = windowed(self.q(x), window, shift)
        key, value = self._folded(windowed(self.kv(x), window, shift))
        out = attention(query, key, value, num_heads=self.num_heads, bias=self._bias(), mask=mask)
        return self.proj(joined(out, window, height, width, shift))


class _ConvFFN(nn.Module):
    """(B, H, W, C) to the same."""

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        inner = round(expansion * dim)
        self.fc1, self.fc2 = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.dwconv = nn.Conv2d(inner, inner, 5, padding=2, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        local = F.gelu(self.dwconv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.fc2(x + local)


class SRFormerBlock(nn.Module):
    """(B, H, W, C) to the same; H and W are multiples of the window.

    Args:
        dim: C, a multiple of `num_heads` and of r².
        num_heads: number of heads.
        window: side of a window, a multiple of r.
        reduction: r.
        shift: rows and columns by which the windows are shifted, a multiple of r, less than `window`.
        expansion: ratio of the feed-forward's hidden width to C.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int, *, reduction: int = 2, shift: int = 0, expansion: float = 2
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PermutedAttention(dim, num_heads, window, reduction=reduction, shift=shift)
        self.mlp = _ConvFFN(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Group(nn.Module):
    """(B, H, W, C) to the same."""

    def __init__(self, dim: int, depth: int, num_heads: int, window: int, reduction: int, expansion: float) -> None:
        super().__init__()
        block = partial(SRFormerBlock, dim, num_heads, window, reduction=reduction, expansion=expansion)
        self.blocks = nn.Sequential(*(block(shift=i % 2 * (window // 2)) for i in range(depth)))
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SRFormer(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    The defaults are those of the light network.

    Args:
        scale: s, at least 1.
        dim: width, a multiple of `num_heads` and of r².
        depths: number of blocks of each group.
        num_heads: number of heads.
        window: side of a window, in pixels; half of it is a multiple of r.
        reduction: r.
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
        depths: tuple[int, ...] = (6, 6, 6, 6),
        num_heads: int = 6,
        window: int = 16,
        reduction: int = 2,
        expansion: float = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale = scale
        self.multiple = window  # tiles start at the borders of windows
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.patch_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.layers = nn.Sequential(*(_Group(dim, n, num_heads, window, reduction, expansion) for n in depths))
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsample = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        first = self.conv_first(to_multiple(x, self.multiple) - self.mean)
        # (B, H, W, C) inside
        features = self.norm(self.layers(self.patch_norm(first.permute(0, 2, 3, 1))))
        out = self.upsample(first + self.conv_after_body(features.permute(0, 3, 1, 2)))
        return (F.pixel_shuffle(out, self.scale) + self.mean)[..., : self.scale * height, : self.scale * width]


# SRFormer-light is `SRFormer` itself.


METHOD = Method(
    id=99,
    name="SRFormer",
    kind="model",
    summary="Attention in large windows whose keys and values are folded r×r to one, at the cost of small windows.",
    paper=Paper(
        "SRFormer: Permuted Self-Attention for Single Image Super-Resolution",
        "Y. Zhou et al.",
        2023,
        "arXiv:2303.09735",
    ),
    models={"srformer_light": SRFormer},
    cases={"srformer_light": {"scale": 2, "dim": 8, "depths": (2,), "num_heads": 2, "window": 4}},
)
