"""LeViT's attention: a bias for each distance in place of positions, keys narrower than values, fewer queries.

*Source*: B. Graham et al., "LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference", ICCV 2021
(arXiv:2104.01136), section 4.2. For tokens x: (B, N, C) of a map of H×W pixels and h heads, with keys of d channels and
values of e = 2d to 4d

    Q = BN(W_q x[::s]),  K, V = BN(W x)          (B, h, M, d), (B, h, N, d) and (B, h, N, e)
    A = softmax(Q Kᵀ / √d + T[|Δrow|, |Δcolumn|])                                  (B, h, M, N)
    y = BN(W_o · hardswish(A V))                 (B, M, C')

T: (h, H, W) is learnt. In a shrinking attention only every s-th row and column asks: M = ⌈H/s⌉·⌈W/s⌉ in place of N,
and e = 4d makes up for it. Four 3×3 convolutions of stride 2 come before, so that the first attention meets
14×14 pixels.

*Differs from the paper*: nothing.

*Provenance*: written from the paper, with timm's parameter names and its linear layer with a batch norm, which
`timm.utils.model.reparameterize_model` folds. The networks (LeViT-128S … 384) are timm's; `use_biased_` puts the
operators of this file into them, and logits stay the same.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.levit import Downsample, LinearNorm
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = [
    "BiasedAttention",
    "ShrinkingAttention",
    "biased_attention",
    "biased_attention_reference",
    "distances",
    "use_biased_",
]


def distances(height: int, width: int, *, stride: int = 1) -> Tensor:
    """Places in a table of H×W numbers: rows and columns between each query and each key.

    Args:
        height: H.
        width: W.
        stride: s, rows and columns from one query to the next.

    Returns:
        W·|Δrow| + |Δcolumn|, (M, N).
    """
    down, right = ((torch.arange(0, side, stride)[:, None] - torch.arange(side)).abs() for side in (height, width))
    # (⌈H/s⌉, ⌈W/s⌉, H, W)
    places = width * down[:, None, :, None] + right[None, :, None, :]
    return places.flatten(2).flatten(0, 1)


def biased_attention(query: Tensor, key: Tensor, value: Tensor, table: Tensor, places: Tensor) -> Tensor:
    """Attend with a number for each distance added to the scores.

    Args:
        query: (B, h, M, d).
        key: (B, h, N, d).
        value: (B, h, N, e).
        table: T, (h, H·W).
        places: which of T's numbers a query and a key share, (M, N), see `distances`.

    Returns:
        Heads side by side, (B, M, h·e).
    """
    scores = query @ key.mT * query.shape[-1] ** -0.5 + table[:, places]
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def biased_attention_reference(query: Tensor, key: Tensor, value: Tensor, table: Tensor, places: Tensor) -> Tensor:
    """The same, query by query.

    Args:
        query: (B, h, M, d).
        key: (B, h, N, d).
        value: (B, h, N, e).
        table: (h, H·W).
        places: (M, N).

    Returns:
        (B, M, h·e).
    """
    pictures = []
    for queries, keys, values in zip(query, key, value, strict=True):
        rows = []
        for m in range(queries.shape[1]):
            found = []
            for head, numbers in enumerate(table):
                scores = [
                    queries[head, m].dot(keys[head, n]) / query.shape[-1] ** 0.5 + numbers[places[m, n]]
                    for n in range(keys.shape[1])
                ]
                likely = (torch.stack(scores) - max(scores)).exp()
                found.append((values[head].mT * likely / likely.sum()).sum(1))
            rows.append(torch.cat(found))
        pictures.append(torch.stack(rows))
    return torch.stack(pictures)


def _check(num_heads: int, key_dim: int, attn_ratio: float) -> None:
    if num_heads < 1 or key_dim < 1 or round(attn_ratio * key_dim) < 1:
        raise ValueError(
            "num_heads, key_dim and the channels of a value, attn_ratio·key_dim, must be at least 1, got "
            f"{num_heads}, {key_dim} and {attn_ratio}·{key_dim}"
        )


class BiasedAttention(nn.Module):
    """(B, H·W, C) to the same shape.

    Args:
        dim: C.
        num_heads: h.
        key_dim: d, channels of a query and of a key.
        attn_ratio: e / d, channels of a value over those of a key.
        size: H and W.
    """

    def __init__(
        self, dim: int, num_heads: int, *, key_dim: int = 16, attn_ratio: float = 2.0, size: tuple[int, int] = (14, 14)
    ) -> None:
        _check(num_heads, key_dim, attn_ratio)
        super().__init__()
        self.num_heads, value_dim = num_heads, round(attn_ratio * key_dim)
        self.splits = [key_dim, key_dim, value_dim]
        self.qkv: nn.Module = LinearNorm(dim, num_heads * (2 * key_dim + value_dim))
        self.proj = nn.Sequential()
        self.proj.add_module("act", nn.Hardswish())
        # starts at 0, so that a block starts as the identity
        self.proj.add_module("ln", LinearNorm(num_heads * value_dim, dim, bn_weight_init=0))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, size[0] * size[1]))
        self.places: Tensor
        self.register_buffer("places", distances(*size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # (B, h, N, …)
        heads = self.qkv(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = heads.split(self.splits, 3)
        out: Tensor = self.proj(biased_attention(query, key, value, self.attention_biases, self.places))
        return out


class ShrinkingAttention(nn.Module):
    """(B, H·W, C) to (B, ⌈H/s⌉·⌈W/s⌉, C').

    Args:
        dim: C.
        out_dim: C'.
        num_heads: h; the paper takes C / d.
        key_dim: d.
        attn_ratio: e / d.
        size: H and W.
        stride: s.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_heads: int,
        *,
        key_dim: int = 16,
        attn_ratio: float = 4.0,
        size: tuple[int, int] = (14, 14),
        stride: int = 2,
    ) -> None:
        _check(num_heads, key_dim, attn_ratio)
        super().__init__()
        self.num_heads, value_dim = num_heads, round(attn_ratio * key_dim)
        self.splits = [key_dim, value_dim]
        self.kv: nn.Module = LinearNorm(dim, num_heads * (key_dim + value_dim))
        self.q = nn.Sequential()
        self.q.add_module("down", Downsample(stride, size))
        self.q.add_module("ln", LinearNorm(dim, num_heads * key_dim))
        self.proj = nn.Sequential()
        self.proj.add_module("act", nn.Hardswish())
        self.proj.add_module("ln", LinearNorm(num_heads * value_dim, out_dim))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, size[0] * size[1]))
        self.places: Tensor
        self.register_buffer("places", distances(*size, stride=stride), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        query, pairs = (y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in (self.q(x), self.kv(x)))
        key, value = pairs.split(self.splits, 3)
        out: Tensor = self.proj(biased_attention(query, key, value, self.attention_biases, self.places))
        return out


def use_biased_(model: nn.Module) -> nn.Module:
    """Put the operators of this file in the place of timm's, with its layers and weights.

    Args:
        model: LeViT of timm with linear layers (not `levit_conv_*`), its norms folded or not; changed in place.

    Returns:
        The model.

    Raises:
        ValueError: no attention of LeViT's in the model, or one of convolutions.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "attention_biases") and hasattr(child, "val_dim")
    ]
    if not places:
        raise ValueError(f"expected a LeViT of timm, got {type(model).__name__} without its attention")
    for parent, name in places:
        theirs: Any = getattr(parent, name)
        if getattr(theirs, "use_conv", True):
            raise ValueError(
                "expected a LeViT of linear layers, got one of convolutions; take levit_… for levit_conv_…"
            )
        options = {"key_dim": theirs.key_dim, "attn_ratio": theirs.val_dim / theirs.key_dim, "size": theirs.resolution}
        ours: Any
        if hasattr(theirs, "kv"):
            ours = ShrinkingAttention(1, 1, theirs.num_heads, stride=theirs.stride, **options)
            ours.kv, ours.q = theirs.kv, theirs.q
        else:
            ours = BiasedAttention(1, theirs.num_heads, **options)
            ours.qkv = theirs.qkv
        ours.proj, ours.attention_biases = theirs.proj, theirs.attention_biases
        ours.places = ours.places.to(theirs.attention_biases.device)
        setattr(parent, name, ours.train(theirs.training))
    return model


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (2, 2, 4, 3), "key": (2, 2, 12, 3), "value": (2, 2, 12, 5), "table": (2, 12)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return drawn | {"places": distances(3, 4, stride=2)}


METHOD = Method(
    id=70,
    name="LeViT",
    kind="operator",
    summary="Attention learns a number for each distance, and shrinks the map by asking at every second pixel.",
    paper=Paper(
        "LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference",
        "B. Graham et al.",
        2021,
        "arXiv:2104.01136",
    ),
    cases={"four_of_twelve": Operator(biased_attention, biased_attention_reference, _inputs)},
)
