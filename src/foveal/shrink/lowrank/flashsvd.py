"""FlashSVD: feed-forward and attention layers of low rank, computed in tiles so that no full activation is stored.

*Source*: Z. Shao et al., "FlashSVD: Memory-Efficient Inference with Streaming for Low-Rank Models", 2025
(arXiv:2508.01506): FlashSVDFFN and FlashSVDAttention.

    W x ≈ U (V x),  U: (out, R),  V: (R, in)                       truncated singular value decomposition
    feed-forward: P = X V₁ᵀ, then for each tile j of the F hidden features
        S = S + GELU(P U₁[j]ᵀ + b₁[j]) V₂[:, j]ᵀ,  and Y = S U₂ᵀ + b₂ at last
    attention: P_q, P_k, P_v = X V_qᵀ, …, then for each tile of heads
        Q, K, V = P U[heads]ᵀ + b[heads],  S = S + attention(Q, K, V) V_o[:, heads]ᵀ,  and Y = S U_oᵀ + b_o

What is stored of full length has R channels, not C or F. Shapes: B batch, N tokens, C channels, F hidden features,
R rank.

*Differs from the paper*: on the CPU a tile is rows × features large enough for an efficient matrix product, and torch's
fused attention tiles within a head; there is no kernel of one launch. On a GPU the hidden features are
computed by one Triton kernel; attention runs in torch there too.
*Provenance*: written from the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.ops.triton import why_not
from foveal.record import Method, Paper

__all__ = [
    "FlashSVDAttention",
    "FlashSVDFeedForward",
    "attention",
    "attention_reference",
    "factorise",
    "feed_forward",
    "feed_forward_reference",
    "feed_forward_triton",
]

# In two stages, tiles of rank 256 fit into an A100's shared memory; multiply-adds are fused, as Triton does by default.
LAUNCH = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


def factorise(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The closest product of two thinner matrices, by truncated singular value decomposition.

    Args:
        weight: W, (out, in).
        rank: R, in 1…min(out, in).

    Returns:
        U √Σ, (out, R), and √Σ Vᵀ, (R, in).

    Raises:
        ValueError: a rank outside its range.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank must be in 1…{min(weight.shape)} for weights {tuple(weight.shape)}, got {rank}")
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _check(rows: int, tile: int, name: str) -> None:
    if rows < 1 or tile < 1:
        raise ValueError(f"rows and {name} must be at least 1, got {rows} and {tile}; a tile needs tokens and features")


def feed_forward(
    x: Tensor,
    v1: Tensor,
    u1: Tensor,
    b1: Tensor,
    v2: Tensor,
    u2: Tensor,
    b2: Tensor,
    *,
    rows: int = 512,
    tile: int = 768,
) -> Tensor:
    """Two linear layers of low rank around a GELU, in tiles.

    Args:
        x: tokens, (B, N, C).
        v1: V₁, (R₁, C).
        u1: U₁, (F, R₁).
        b1: bias of the first layer, (F,).
        v2: V₂, (R₂, F).
        u2: U₂, (C, R₂).
        b2: bias of the second layer, (C,).
        rows: number of tokens of a tile.
        tile: number of hidden features of a tile.

    Returns:
        Tokens, (B, N, C).

    Raises:
        ValueError: an empty tile.
    """
    _check(rows, tile, "tile")
    tokens = x.reshape(-1, x.shape[-1])
    out = x.new_empty(tokens.shape[0], u2.shape[0])
    for start in range(0, tokens.shape[0], rows):
        thin = tokens[start : start + rows] @ v1.T
        total = x.new_zeros(thin.shape[0], v2.shape[0])
        for j in range(0, u1.shape[0], tile):
            hidden = F.gelu(F.linear(thin, u1[j : j + tile], b1[j : j + tile]))
            total = total.addmm_(hidden, v2[:, j : j + tile].T)
        out[start : start + rows] = F.linear(total, u2, b2)
    return out.view(*x.shape[:-1], -1)


def feed_forward_triton(
    x: Tensor, v1: Tensor, u1: Tensor, b1: Tensor, v2: Tensor, u2: Tensor, b2: Tensor, *, rows: int = 32, tile: int = 16
) -> Tensor:
    """`feed_forward` with one Triton kernel for all that is hidden; forward only.

    Args:
        x: tokens, (B, N, C), float32 on a CUDA device.
        v1: V₁, (R₁, C).
        u1: U₁, (F, R₁).
        b1: bias of the first layer, (F,).
        v2: V₂, (R₂, F).
        u2: U₂, (C, R₂).
        b2: bias of the second layer, (C,).
        rows: number of tokens of a program, a power of two of at least 16.
        tile: number of hidden features of a tile, a power of two of at least 16.

    Returns:
        Tokens, (B, N, C).

    Raises:
        ValueError: tensors that Triton cannot compute with here.
    """
    if (reason := why_not(x)) is not None:
        raise ValueError(f"feed_forward_triton cannot run: {reason}; feed_forward runs anywhere")
    from foveal.shrink.lowrank.flashsvd_kernel import hidden

    thin = (x.reshape(-1, x.shape[-1]) @ v1.T).contiguous()
    (tokens, rank), (rank_out, features) = thin.shape, v2.shape
    total = thin.new_empty(tokens, rank_out)
    padded = (1 << max(4, (size - 1).bit_length()) for size in (rank, rank_out))  # powers of two from 16 on
    hidden[(-(-tokens // rows),)](
        thin,
        u1.contiguous(),
        b1,
        v2.contiguous(),
        total,
        tokens,
        features,
        rank,
        rank_out,
        rows,
        tile,
        *padded,
        **LAUNCH,
    )
    return F.linear(total, u2, b2).view(*x.shape[:-1], -1)


def feed_forward_reference(x: Tensor, v1: Tensor, u1: Tensor, b1: Tensor, v2: Tensor, u2: Tensor, b2: Tensor) -> Tensor:
    """`feed_forward` with every activation stored.

    Args:
        x: tokens, (B, N, C).
        v1: V₁, (R₁, C).
        u1: U₁, (F, R₁).
        b1: bias of the first layer, (F,).
        v2: V₂, (R₂, F).
        u2: U₂, (C, R₂).
        b2: bias of the second layer, (C,).

    Returns:
        Tokens, (B, N, C).
    """
    hidden = F.gelu(F.linear(F.linear(x, v1), u1, b1))
    return F.linear(F.linear(hidden, v2), u2, b2)


def attention(
    x: Tensor,
    v: Tensor,
    u: Tensor,
    b: Tensor,
    v_out: Tensor,
    u_out: Tensor,
    b_out: Tensor,
    *,
    num_heads: int,
    rows: int = 512,
    heads: int = 4,
) -> Tensor:
    """Self-attention whose four projections have low rank, in tiles of sequences and heads.

    Args:
        x: tokens, (B, N, C).
        v: V of queries, keys and values, (3, R, C).
        u: U of queries, keys and values, (3, C, R); heads one after the other.
        b: their biases, (3, C).
        v_out: V of the output projection, (R', C).
        u_out: its U, (C, R').
        b_out: its bias, (C,).
        num_heads: number of heads.
        rows: number of tokens of a tile; at least one whole sequence is taken.
        heads: number of heads of a tile.

    Returns:
        Tokens, (B, N, C).

    Raises:
        ValueError: an empty tile.
    """
    _check(rows, heads, "heads")
    batch, length, _ = x.shape
    size = u.shape[1] // num_heads
    out = x.new_empty(batch, length, u_out.shape[0])
    some = max(1, rows // length)
    for start in range(0, batch, some):
        # (b, N, C) to (3, b·N, R)
        thin = F.linear(x[start : start + some], v.flatten(0, 1)).view(-1, *v.shape[:2]).transpose(0, 1)
        total = x.new_zeros(thin.shape[1], v_out.shape[0])
        for head in range(0, num_heads, heads):
            at = slice(head * size, min(head + heads, num_heads) * size)
            # (3, rows, heads·D) to (3, b, heads, N, D)
            made = torch.baddbmm(b[:, None, at], thin, u[:, at].transpose(1, 2))
            q, k, values = made.view(3, -1, length, made.shape[2] // size, size).transpose(2, 3)
            y = F.scaled_dot_product_attention(q, k, values).transpose(1, 2).reshape(total.shape[0], -1)
            total = total.addmm_(y, v_out[:, at].T)
        out[start : start + some] = F.linear(total, u_out, b_out).view(-1, length, u_out.shape[0])
    return out


def attention_reference(
    x: Tensor, v: Tensor, u: Tensor, b: Tensor, v_out: Tensor, u_out: Tensor, b_out: Tensor, *, num_heads: int
) -> Tensor:
    """`attention` with queries, keys and values stored, and the same fused attention.

    Args:
        x: tokens, (B, N, C).
        v: V of queries, keys and values, (3, R, C).
        u: U of queries, keys and values, (3, C, R); heads one after the other.
        b: their biases, (3, C).
        v_out: V of the output projection, (R', C).
        u_out: its U, (C, R').
        b_out: its bias, (C,).
        num_heads: number of heads.

    Returns:
        Tokens, (B, N, C).
    """
    q, k, values = (
        F.linear(F.linear(x, v[i]), u[i], b[i]).unflatten(2, (num_heads, -1)).transpose(1, 2) for i in range(3)
    )
    y = F.scaled_dot_product_attention(q, k, values).transpose(1, 2).flatten(2)
    return F.linear(F.linear(y, v_out), u_out, b_out)


class FlashSVDFeedForward(nn.Module):
    """`feed_forward` as a module, (B, N, C) to the same, from two linear layers of full rank.

    Args:
        first: layer before the GELU, C to F.
        second: layer after it, F to C.
        rank: rank of both.
        rows: number of tokens of a tile.
        tile: number of hidden features of a tile.

    Raises:
        ValueError: a rank that the layers do not have.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear, *, rank: int, rows: int = 512, tile: int = 768) -> None:
        super().__init__()
        self.rows, self.tile = rows, tile
        (u1, v1), (u2, v2) = (factorise(layer.weight.detach(), rank) for layer in (first, second))
        self.v1, self.u1, self.v2, self.u2 = (nn.Parameter(t) for t in (v1, u1, v2, u2))
        self.b1, self.b2 = (nn.Parameter(layer.bias.detach().clone()) for layer in (first, second))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.v1, self.u1, self.b1, self.v2, self.u2, self.b2
        if x.is_cuda and not torch.is_grad_enabled() and why_not(x) is None:
            return feed_forward_triton(x, *weights)
        return feed_forward(x, *weights, rows=self.rows, tile=self.tile)


class FlashSVDAttention(nn.Module):
    """`attention` as a module, (B, N, C) to the same, from projections of full rank.

    Args:
        qkv: layer to queries, keys and values, C to 3·C, as in timm.
        proj: output projection, C to C.
        num_heads: number of heads.
        rank: rank of all four projections.
        rows: number of tokens of a tile; at least one whole sequence is taken.
        heads: number of heads of a tile.

    Raises:
        ValueError: a rank that the layers do not have.
    """

    def __init__(
        self, qkv: nn.Linear, proj: nn.Linear, *, num_heads: int, rank: int, rows: int = 512, heads: int = 4
    ) -> None:
        super().__init__()
        self.num_heads, self.rows, self.heads = num_heads, rows, heads
        parts = [factorise(weight, rank) for weight in qkv.weight.detach().chunk(3)]
        self.u, self.v = (nn.Parameter(torch.stack(factors)) for factors in zip(*parts, strict=True))
        self.u_out, self.v_out = (nn.Parameter(factor) for factor in factorise(proj.weight.detach(), rank))
        bias = qkv.weight.new_zeros(3, proj.in_features) if qkv.bias is None else qkv.bias.detach().clone().view(3, -1)
        self.b, self.b_out = nn.Parameter(bias), nn.Parameter(proj.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        weights = self.v, self.u, self.b, self.v_out, self.u_out, self.b_out
        return attention(x, *weights, num_heads=self.num_heads, rows=self.rows, heads=self.heads)


def _draw(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}


METHOD = Method(
    id=343,
    name="FlashSVD",
    kind="operator",
    summary="Layers of low rank are computed in tiles, so that no activation of full width is stored.",
    paper=Paper(
        "FlashSVD: Memory-Efficient Inference with Streaming for Low-Rank Models",
        "Z. Shao et al.",
        2025,
        "arXiv:2508.01506",
    ),
    cases={
        "feed_forward": Operator(
            lambda **given: feed_forward(**given, rows=4, tile=3),
            feed_forward_reference,
            lambda seed: _draw(seed, x=(2, 5, 6), v1=(2, 6), u1=(7, 2), b1=(7,), v2=(3, 7), u2=(6, 3), b2=(6,)),
        ),
        "attention": Operator(
            lambda **given: attention(**given, num_heads=3, rows=4, heads=2),
            lambda **given: attention_reference(**given, num_heads=3),
            lambda seed: _draw(
                seed, x=(3, 5, 6), v=(3, 2, 6), u=(3, 6, 2), b=(3, 6), v_out=(3, 6), u_out=(6, 3), b_out=(6,)
            ),
        ),
    },
)
