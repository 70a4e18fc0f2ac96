"""GeminiFusion: each pixel of a stream attends to itself, with learned noise, and to the other stream's at its place.

*Source*: D. Jia et al., "GeminiFusion: Efficient Pixel-wise Multimodal Fusion for Vision Transformer", ICML 2024
(arXiv:2406.01210), section 3. For a pixel x of one stream and y of the other at the same place, both (C,), with a noise
of keys n_k and of values n_v that is learned for each stream of each layer:

    r = softmax(W₂ gelu(W₁ [x, y]))                                        relation of the two, over the channels
    q = x,  keys = [n_k + x, r ∘ x],  values = [n_v + x, y]
    x' = x + MultiHeadAttention(q, keys, values)                           and y' with x and y exchanged

A softmax over two keys is a sigmoid: with a = sigmoid(q · (k₁ - k₂) / √d), a head is a v₁ + (1 - a) v₂, and k₁ - k₂ =
W_k (n_k + x - r ∘ x), so one projection serves both keys, for all pixels of a batch at once.

*Differs from the paper*: nothing.
*Provenance*: written from the paper; that the relation is shared by both streams, and its layers, were looked up in the
authors' code, which loops over the batch. With the same weights both streams equal that code to 3e-7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.fusion import check_pair, map_of, tokens_of, zero_
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GeminiFusion", "gemini_attention", "gemini_attention_reference"]


def gemini_attention(
    x: Tensor,
    y: Tensor,
    relation: Tensor,
    *,
    key_noise: Tensor,
    value_noise: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    num_heads: int,
) -> Tensor:
    """What the attention of each pixel to two keys adds to one stream.

    Args:
        x: tokens of the stream, (B, N, C).
        y: tokens of the other one, (B, N, C).
        relation: r, (B, N, C).
        key_noise: n_k, (C,).
        value_noise: n_v, (C,).
        in_weight: projections to queries, keys and values, (3·C, C), as in `torch.nn.MultiheadAttention`.
        in_bias: their biases, (3·C,).
        out_weight: projection of the heads, (C, C).
        out_bias: its bias, (C,).
        num_heads: number of heads.

    Returns:
        (B, N, C).
    """
    w_q, w_k, w_v = in_weight.chunk(3)
    b_q, _, b_v = in_bias.chunk(3)  # the bias of the keys adds the same to both scores
    dim = x.shape[-1] // num_heads

    def heads(tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, N, heads, C / heads)."""
        return tokens.unflatten(-1, (num_heads, dim))

    between = F.linear(key_noise + x - relation * x, w_k)  # k₁ - k₂
    score = (heads(F.linear(x, w_q, b_q)) * heads(between)).sum(-1, keepdim=True) / dim**0.5
    own, other = heads(F.linear(value_noise + x, w_v, b_v)), heads(F.linear(y, w_v, b_v))
    return F.linear(torch.lerp(other, own, torch.sigmoid(score)).flatten(-2), out_weight, out_bias)


def gemini_attention_reference(
    x: Tensor,
    y: Tensor,
    relation: Tensor,
    *,
    key_noise: Tensor,
    value_noise: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    num_heads: int,
) -> Tensor:
    """`gemini_attention` by `torch.nn.MultiheadAttention`, sample by sample, with the pixels as its batch.

    Args:
        x: as in `gemini_attention`.
        y: as in `gemini_attention`.
        relation: as in `gemini_attention`.
        key_noise: as in `gemini_attention`.
        value_noise: as in `gemini_attention`.
        in_weight: as in `gemini_attention`.
        in_bias: as in `gemini_attention`.
        out_weight: as in `gemini_attention`.
        out_bias: as in `gemini_attention`.
        num_heads: as in `gemini_attention`.

    Returns:
        (B, N, C).
    """
    attend = nn.MultiheadAttention(x.shape[-1], num_heads, dtype=x.dtype, device=x.device)
    weights = {"in_proj_weight": in_weight, "in_proj_bias": in_bias}
    weights |= {"out_proj.weight": out_weight, "out_proj.bias": out_bias}
    found = []
    for own, other, weight in zip(x, y, relation, strict=True):
        # one query and two keys, (1, N, C) and (2, N, C)
        keys, values = torch.stack((key_noise + own, weight * own)), torch.stack((value_noise + own, other))
        found.append(torch.func.functional_call(attend, weights, (own[None], keys, values))[0][0])
    return torch.stack(found)


class GeminiFusion(nn.Module):
    """Pixel-wise fusion of two streams, two of (B, dim, H, W) to the same; a `foveal.nn.fusion.Fusion`.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of heads.
        zero_init: whether the block starts as the identity.

    Raises:
        ValueError: channels that the heads do not divide.
    """

    def __init__(self, dim: int, *, num_heads: int = 8, zero_init: bool = False) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of the {num_heads} heads, got {dim}; change num_heads")
        self.dim, self.num_heads = dim, num_heads
        self.relation = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.Softmax(-1))
        self.key_noise, self.value_noise = (nn.Parameter(torch.randn(2, dim)) for _ in range(2))
        self.attend = nn.ModuleList(nn.MultiheadAttention(dim, num_heads) for _ in range(2))
        if zero_init:
            zero_(*(attend.out_proj for attend in self.attend))  # type: ignore[arg-type, union-attr]

    def added(self, x: Tensor, y: Tensor, stream: int, *, by: Callable[..., Tensor] = gemini_attention) -> Tensor:
        """What is added to one stream.

        Args:
            x: tokens of the stream, (B, N, C).
            y: tokens of the other one, (B, N, C).
            stream: 0 or 1, whose weights are used.
            by: `gemini_attention` or its reference.

        Returns:
            (B, N, C).
        """
        attend = self.attend[stream]
        return by(
            x,
            y,
            self.relation(torch.cat((x, y), -1)),
            key_noise=self.key_noise[stream],
            value_noise=self.value_noise[stream],
            in_weight=attend.in_proj_weight,
            in_bias=attend.in_proj_bias,
            out_weight=attend.out_proj.weight,  # type: ignore[union-attr]
            out_bias=attend.out_proj.bias,  # type: ignore[union-attr]
            num_heads=self.num_heads,
        )

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        check_pair(x, y, self.dim)
        size, a, b = x.shape[2:], tokens_of(x), tokens_of(y)
        return x + map_of(self.added(a, b, 0), *size), y + map_of(self.added(b, a, 1), *size)


def _draw(seed: int, batch: int, length: int, dim: int, num_heads: int) -> dict[str, Tensor | int]:
    generator = torch.Generator().manual_seed(seed)
    tokens = dict.fromkeys(("x", "y", "relation"), (batch, length, dim))
    noise = {"key_noise": (dim,), "value_noise": (dim,)}
    weights = {"in_weight": (3 * dim, dim), "in_bias": (3 * dim,), "out_weight": (dim, dim), "out_bias": (dim,)}
    shapes = {**tokens, **noise, **weights}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {"num_heads": num_heads}


METHOD = Method(
    id=14,
    name="GeminiFusion",
    kind="operator",
    summary="Each pixel of two streams attends to itself with learned noise and to the same pixel of the other stream.",
    paper=Paper(
        "GeminiFusion: Efficient Pixel-wise Multimodal Fusion for Vision Transformer",
        "D. Jia et al.",
        2024,
        "arXiv:2406.01210",
    ),
    cases={
        "four heads": Operator(gemini_attention, gemini_attention_reference, lambda seed: _draw(seed, 3, 7, 12, 4)),
        "one pixel": Operator(gemini_attention, gemini_attention_reference, lambda seed: _draw(seed, 1, 1, 5, 1)),
    },
)
