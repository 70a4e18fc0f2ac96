"""BiFormer: each region of the map attends to the few regions that are most like it.

*Source*: L. Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023 (arXiv:2303.08810),
sections 3.2 and 3.3, table 1. Bi-level routing attention cuts the map into R = S² regions of n = H·W / R tokens.
Regions find each other by their means; tokens then attend to all tokens of the k regions that theirs found:

    A = mean(Q) mean(K)ᵀ                                  affinity of regions, (B, R, R)
    I = the k largest of each row of A                    (B, R, k), not differentiated
    O = softmax(Q K[I]ᵀ / √C) V[I] + local(V)             Q: (B, R, n, C), K[I] and V[I]: (B, R, k·n, C)
    multiply-adds: N (4 C² + s² C) + R² C + 2 N k n C     N = H·W; O(N^(4/3)) where S grows with the cube root of N

local is a depthwise s × s convolution. A block adds a depthwise 3×3 convolution for positions before it and an MLP
behind it. There are four stages; k = 1, 4 and 16 of 49 regions, and dense attention in the last.

Shapes: B batch, H W height and width, C channels, S regions a side, R regions, n tokens of one, k regions found by it.

*Differs from the paper*: as in the authors' code, the last stage has plain attention of 8 heads, scaled by the width of
a head, without biases of queries, keys and values, and with a local term of the input; the paper has routing to all
regions. If S does not divide a side, the authors' code pads with zeros that take part in attention; here regions at the
border are smaller, and a small map has fewer than S².

*Provenance*: written from the paper; the scale 1/√C for all heads, the order of norms and the sizes were looked up in
the authors' code, whose three networks this equals under shared weights at 224×224: to 2e-6 with initial weights, and
to 1.2e-6 of the largest logit with all weights and statistics drawn.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from foveal.nn.gather import take
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.windows import joined, windowed
from foveal.nn.windows import regions as padding_of
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BiFormer",
    "BiFormerBlock",
    "BiLevelRoutingAttention",
    "LocalAttention",
    "biformer_b",
    "biformer_s",
    "biformer_t",
    "from_authors",
    "region_size",
    "routed_attention",
    "routed_attention_reference",
    "routes",
]


def region_size(height: int, width: int, regions: int) -> tuple[int, int]:
    """Tokens of a region.

    Args:
        height: H.
        width: W.
        regions: regions a side, S.

    Returns:
        Rows and columns, rounded up; a side that S does not divide may have fewer regions than S.
    """
    return -(-height // regions), -(-width // regions)


def routes(query: Tensor, key: Tensor, top_k: int, counts: Tensor | None = None) -> Tensor:
    """The regions whose mean key is most like a region's mean query.

    Args:
        query: queries of each region, (B, R, n, C), zero where there is no token.
        key: keys of each region, (B, R, n, C), zero where there is no token.
        top_k: k; all regions if there are fewer.
        counts: tokens of each region, (R,); None if all have n.

    Returns:
        Numbers of the regions, (B, R, k) int64 in no order.
    """
    query, key = query.detach().sum(2), key.detach().sum(2)
    # a region's own count scales its row of the affinity alone, which leaves the order in the row
    if counts is not None:
        key = key / counts[:, None]
    return (query @ key.mT).topk(min(top_k, key.shape[1]), sorted=False).indices


def routed_attention(query: Tensor, key: Tensor, value: Tensor, *, regions: int, top_k: int, num_heads: int) -> Tensor:
    """Attention of each region to the tokens of the regions that it finds, which are gathered.

    Args:
        query: (B, H, W, C).
        key: (B, H, W, C).
        value: (B, H, W, C).
        regions: regions a side, S.
        top_k: regions that each finds, k.
        num_heads: attention heads, a divisor of C.

    Returns:
        (B, H, W, C).
    """
    batch, height, width, dim = query.shape
    window = region_size(height, width, regions)
    count = -(-height // window[0]) * -(-width // window[1])
    # (B, R, n, C or 2C)
    q, kv = (
        windowed(x, window).view(batch, count, window[0] * window[1], x.shape[3])
        for x in (query, torch.cat((key, value), -1))
    )
    real = None
    if height % window[0] or width % window[1]:
        real = padding_of(height, width, window, device=query.device) == 0
    index = routes(q, kv[..., :dim], top_k, None if real is None else real.sum(1))
    # (B·R, k·n, 2C): whole regions are copied, keys and values together
    found = take(kv, index.flatten(1)).view(-1, index.shape[2] * kv.shape[2], 2 * dim)
    mask = None if real is None else real[index].flatten(0, 1).flatten(1)[:, None, None]
    # (B·R, heads, n or k·n, C / heads)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q.flatten(0, 1), *found.chunk(2, -1)))
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=dim**-0.5)
    return joined(out.transpose(1, 2).flatten(2), window, height, width)


def routed_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, *, regions: int, top_k: int, num_heads: int
) -> Tensor:
    """The same among all tokens, with a mask that hides the regions which were not found.

    Args:
        query: (B, H, W, C).
        key: (B, H, W, C).
        value: (B, H, W, C).
        regions: regions a side, S.
        top_k: regions that each finds, k.
        num_heads: attention heads, a divisor of C.

    Returns:
        (B, H, W, C).
    """
    height, width, dim = query.shape[1:]
    rows, columns = region_size(height, width, regions)
    across = -(-width // columns)
    y, x = torch.arange(height) // rows, torch.arange(width) // columns
    # (N,) and (R, N): the region of each token, and a row of equal weights for each region
    region = (across * y[:, None] + x).flatten().to(query.device)
    member = F.one_hot(region).mT.to(query.dtype)
    member = member / member.sum(1, keepdim=True)
    q, k, v = (of.flatten(1, 2) for of in (query, key, value))
    affinity = (member @ q) @ (member @ k).mT
    seen = torch.zeros_like(affinity, dtype=torch.bool)
    seen.scatter_(2, affinity.topk(min(top_k, affinity.shape[2])).indices, value=True)
    # (B, 1, N, N)
    mask = seen[:, region][:, :, region][:, None]
    q, k, v = (of.unflatten(-1, (num_heads, -1)).transpose(1, 2) for of in (q, k, v))
    scores = (q @ k.mT / dim**0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(query.shape)


def _local(dim: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


class BiLevelRoutingAttention(nn.Module):
    """Attention to the regions found, and a local term of the values: (B, H, W, C) to the same.

    Args:
        dim: C.
        num_heads: attention heads, a divisor of C.
        regions: regions a side, S.
        top_k: regions that each finds, k; all if there are fewer.
        kernel_size: side of the local term, s, odd.

    Raises:
        ValueError: heads that do not divide C, or no region.
    """

    def __init__(self, dim: int, num_heads: int, *, regions: int = 7, top_k: int = 4, kernel_size: int = 5) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        if regions < 1 or top_k < 1:
            raise ValueError(
                f"regions and top_k must be at least 1, got {regions} and {top_k}; None in top_ks of BiFormer is dense"
            )
        self.num_heads, self.regions, self.top_k = num_heads, regions, top_k
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.local = _local(dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        out = routed_attention(query, key, value, regions=self.regions, top_k=self.top_k, num_heads=self.num_heads)
        return self.proj(out + self.local(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class LocalAttention(nn.Module):
    """Attention among all tokens, and a local term of the input: (B, H, W, C) to the same.

    Args:
        dim: C.
        num_heads: attention heads, a divisor of C.
        kernel_size: side of the local term, s, odd.

    Raises:
        ValueError: heads that do not divide C.
    """

    def __init__(self, dim: int, num_heads: int, *, kernel_size: int = 5) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.local = _local(dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        # (3, B, heads, H·W, C / heads)
        heads = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*heads.unbind()).transpose(1, 2).reshape(x.shape)
        return self.proj(out + self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class BiFormerBlock(nn.Module):
    """Positions, attention, MLP, each with a shortcut: (B, C, H, W) to the same.

    Args:
        dim: C.
        num_heads: attention heads.
        regions: regions a side, S.
        top_k: regions that each finds, k; None for dense attention.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability of dropping attention and MLP while training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        regions: int = 7,
        top_k: int | None = 4,
        mlp_ratio: float = 3.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pos_conv = _local(dim, 3)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn: nn.Module = (
            LocalAttention(dim, num_heads)
            if top_k is None
            else BiLevelRoutingAttention(dim, num_heads, regions=regions, top_k=top_k)
        )
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.pos_conv(x)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2).contiguous()


class BiFormer(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any H and W.

    Args:
        dims: C of each stage.
        depths: number of blocks of each stage.
        num_heads: attention heads of each stage.
        top_ks: k of each stage; None for dense attention.
        regions: regions a side, S.
        mlp_ratio: hidden channels of the MLPs over C.
        in_channels: of the picture.
        num_classes: of the head; 0 gives pooled features.
        drop_path: of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: settings that are not one for each stage.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        num_heads: Sequence[int] = (2, 4, 8, 8),
        top_ks: Sequence[int | None] = (1, 4, 16, None),
        regions: int = 7,
        mlp_ratio: float = 3.0,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        lengths = [len(of) for of in (dims, depths, num_heads, top_ks)]
        if len(set(lengths)) > 1:
            raise ValueError(f"dims, depths, num_heads and top_ks must have the same length, got {lengths}")
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
        for i, (dim, depth, heads, top_k) in enumerate(zip(dims, depths, num_heads, top_ks, strict=True)):
            layers: list[nn.Module] = []
            if i:
                layers += [nn.Conv2d(dims[i - 1], dim, 3, 2, 1), nn.BatchNorm2d(dim)]
            for _ in range(depth):
                layers.append(
                    BiFormerBlock(dim, heads, regions=regions, top_k=top_k, mlp_ratio=mlp_ratio, drop_path=next(rates))
                )
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


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, of the networks that the paper prints.

    Returns:
        State dict of `biformer_t`, `biformer_s` or `biformer_b`.
    """
    return renamed(
        state_dict,
        [
            (r"^stages\.([1-9])\.(\d+)\.", lambda at: f"stages.{at[1]}.{int(at[2]) + 2}."),
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.", "stages."),
            (r"\.pos_embed\.", ".pos_conv."),
            (r"\.attn\.qkv\.qkv\.", ".attn.qkv."),
            (r"\.attn\.wo\.", ".attn.proj."),
            (r"\.attn\.lepe\.", ".attn.local."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ],
    )


biformer_t = BiFormer  # BiFormer-T: 13.1 M parameters, 2.2 G multiply-adds at 224×224
biformer_s = partial(BiFormer, depths=(4, 4, 18, 4))  # BiFormer-S: 25.5 M, 4.5 G
biformer_b = partial(biformer_s, dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 8))  # BiFormer-B: 56.8 M, 9.8 G

_TINY = {"dims": (8, 8), "depths": (1, 2), "num_heads": (2, 2), "top_ks": (2, None), "regions": 3}

METHOD = Method(
    id=176,
    name="BiFormer",
    kind="model",
    summary="Regions find the few regions most like them, and their tokens attend to those regions' tokens.",
    paper=Paper(
        "BiFormer: Vision Transformer with Bi-Level Routing Attention", "L. Zhu et al.", 2023, "arXiv:2303.08810"
    ),
    models={"biformer_t": biformer_t, "biformer_s": biformer_s, "biformer_b": biformer_b},
    cases={
        "biformer_t": {**_TINY, "num_classes": 3, "in_channels": 1, "drop_path": 0.1},
        "biformer_s": {**_TINY, "num_classes": 3},
        "biformer_b": {**_TINY, "num_classes": 0},
    },
)
