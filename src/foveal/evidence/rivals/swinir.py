"""SwinIR: attention in 8×8 windows, the network that transformers for super-resolution are compared with.

*Source*: J. Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV workshops 2021 (arXiv:2108.10257),
section 3. A 3×3 convolution, groups of blocks with a 3×3 convolution and a skip, a norm, a 3×3 convolution, a skip
around all of it, a 3×3 convolution and a pixel shuffle. A block, every second one with shifted windows:

    x + attention(norm x), then x + W₂ gelu(W₁ norm x)

*Differs from the paper*: no stochastic depth. Pictures are reflected up to a multiple of the window, as in the authors'
code; where they are smaller than what is added, the edge is repeated.

*Provenance*: written from the paper; sizes and initial weights were looked up in the authors' code. Under shared
weights the light network equals spandrel's to 1e-6 at 45×67. It has 910,152 parameters at ×2 and 929,628 at ×4, the
biases of attention included; the paper's 878 K and 897 K leave them out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.windows import WindowAttention, to_multiple

__all__ = ["Block", "SwinIR"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K


class Block(nn.Module):
    """Attention and feed-forward, (B, H, W, C) to the same.

    Args:
        dim: C.
        num_heads: number of heads, a divisor of C.
        window: side of a window, in pixels.
        shifted: whether windows are shifted by half their side.
        expansion: ratio of the feed-forward's hidden width to C.
    """

    def __init__(self, dim: int, num_heads: int, window: int, *, shifted: bool = False, expansion: float = 2) -> None:
        super().__init__()
        shift = window // 2 if shifted else 0
        hidden = round(expansion * dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, (window, window), (shift, shift))
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Group(nn.Module):
    """Blocks, a convolution and a skip, (B, H, W, C) to the same."""

    def __init__(self, dim: int, depth: int, num_heads: int, window: int, expansion: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(dim, num_heads, window, shifted=i % 2 == 1, expansion=expansion) for i in range(depth))
        )
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """(B, C, H, W) to (B, C, s·H, s·W), values in [0, 1]; the defaults are SwinIR-light.

    Args:
        scale: s.
        dim: width.
        depths: number of blocks of each group.
        num_heads: number of heads, a divisor of the width.
        window: side of a window, in pixels.
        expansion: ratio of a feed-forward's hidden width to `dim`.
        in_channels: C.
    """

    mean: Tensor

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 60,
        depths: tuple[int, ...] = (6, 6, 6, 6),
        num_heads: int = 6,
        window: int = 8,
        expansion: float = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.scale, self.window = scale, window
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.patch_norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(*(_Group(dim, depth, num_heads, window, expansion) for depth in depths))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsample = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        first = self.conv_first(to_multiple(x, self.window) - self.mean)
        # (B, H, W, C) inside
        features = self.norm(self.layers(self.patch_norm(first.permute(0, 2, 3, 1))))
        out = self.upsample(first + self.conv_after_body(features.permute(0, 3, 1, 2)))
        return (F.pixel_shuffle(out, self.scale) + self.mean)[..., : self.scale * height, : self.scale * width]
