"""Rivals of fusion blocks, plain, on the interface of `foveal.nn.fusion`: concatenation, exchange, cross-attention.

*Source*: exchange of uninformative tokens: Y. Wang et al., "Multimodal Token Fusion for Vision Transformers", CVPR 2022
(arXiv:2204.08721), without its penalty on the scores: a fixed share of the tokens, the lowest scores, is exchanged.
Attention of every token of one stream to all of the other: A. Vaswani et al., "Attention Is All You Need", 2017
(arXiv:1706.03762).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.fusion import map_of, tokens_of

__all__ = ["Concatenation", "CrossAttention", "TokenExchange"]


class Concatenation(nn.Module):
    """x' = x + W [x, y], a 1×1 convolution for each stream; two of (B, dim, H, W) to the same.

    Args:
        dim: number of channels of a stream, C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv2d(2 * dim, dim, 1) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.mix[0](torch.cat((x, y), 1)), y + self.mix[1](torch.cat((y, x), 1))


class TokenExchange(nn.Module):
    """Each stream weights its tokens by a score and replaces those of the lowest scores by the other's, projected.

    Args:
        dim: number of channels of a stream, C.
        share: share of the tokens that is replaced, in (0, 1).
    """

    def __init__(self, dim: int, *, share: float = 0.5) -> None:
        super().__init__()
        self.share = share
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1), nn.Sigmoid()) for _ in range(2)
        )
        self.project = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def _exchanged(self, own: Tensor, other: Tensor, stream: int) -> Tensor:
        score = self.scores[stream](own)
        count = round(self.share * own.shape[1])
        lowest = torch.zeros_like(score, dtype=torch.bool)
        lowest.scatter_(1, score.topk(count, dim=1, largest=False).indices, value=True)
        return torch.where(lowest, self.project[stream](other), score * own)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        size, a, b = x.shape[2:], tokens_of(x), tokens_of(y)
        return map_of(self._exchanged(a, b, 0), *size), map_of(self._exchanged(b, a, 1), *size)


class CrossAttention(nn.Module):
    """Each token of a stream attends to all of the other; two of (B, dim, H, W) to the same, added to the streams.

    Args:
        dim: number of channels of a stream, C, a multiple of `num_heads`.
        num_heads: number of heads.
    """

    def __init__(self, dim: int, *, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key_value, self.out = (
            nn.ModuleList(nn.Linear(dim, width) for _ in range(2)) for width in (dim, 2 * dim, dim)
        )

    def _added(self, own: Tensor, other: Tensor, stream: int) -> Tensor:
        # three of (B, heads, N, C / heads)
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.query[stream](own), *self.key_value[stream](other).chunk(2, -1))
        )
        return self.out[stream](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        size, a, b = x.shape[2:], tokens_of(x), tokens_of(y)
        return x + map_of(self._added(a, b, 0), *size), y + map_of(self._added(b, a, 1), *size)
