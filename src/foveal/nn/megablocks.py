"""MegaBlocks: a mixture of experts that drops no token, its hidden layer a block-sparse matrix drawn up for each batch.

*Source*: T. Gale, D. Narayanan, C. Young, M. Zaharia, "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts",
MLSys 2023 (arXiv:2211.15841), sections 4 and 5; the authors' code is at
github.com/databricks/megablocks.

Rows x, (N, C), go to k experts each, A = N·k. Each expert's rows are filled up with zeros to a multiple of the block b,
P rows in all, A ≤ P ≤ A + E·(b - 1). With the weights of all experts side by side, w1 and w2, (E·H, C), the hidden rows
of an expert meet its own columns alone, so that they are a block-diagonal matrix S of P × E·H numbers:

    X = padded_gather(x)          (N, C) to (P, C)
    S = act(X w1ᵀ)                SDD: the blocks on the diagonal are computed and stored
    Y = S w2                      DSD: (P, C)
    y = Σ_j g_j padded_scatter(Y)   (P, C) to (N, C)

    dS = dY w2ᵀ  (SDD),  dX = dS w1  (DSD),  dw2 = Sᵀ dY  and  dw1 = dSᵀ X  (DSᵀD)

The topology is blocked CSR with the row of each block beside its column, and the blocks' numbers in the order of the
columns, by which Sᵀ is read without a second copy of the values.

*Differs from the paper*: on the CPU a product takes one matrix product an expert instead of one a block, and the values
are laid out for it; see `foveal.ops.experts.topology`. dw1 is computed as dSᵀ X, the weight being stored by rows, where
the paper's Xᵀ dS is its transpose. The experts have no bias, act is GELU, and there is no load-balancing loss in here.
*Provenance*: written from the paper; the authors' code needs a GPU.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.ops.experts import group_rows, top_experts
from foveal.ops.experts.reference import expert_mlp_reference
from foveal.ops.experts.topology import block_diagonal, dsd, sdd
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MegaBlocks", "megablocks_mlp", "padded_sizes"]


def padded_sizes(sizes: Sequence[int], block: int) -> list[int]:
    """Rows of each expert, filled up to a multiple of the block.

    Args:
        sizes: rows of each expert.
        block: side of a block, b.

    Returns:
        Numbers of rows; an expert without rows stays without.
    """
    return [-(-size // block) * block for size in sizes]


def megablocks_mlp(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor, *, block: int = 128) -> Tensor:
    """MLP of experts, Σ_j g_j W2_e gelu(W1_e x), by products of block-sparse matrices.

    Args:
        x: rows, (N, C).
        w1: first weights, (E, H, C).
        w2: second weights, transposed, (E, H, C).
        gates: gates, (N, k).
        experts: experts, (N, k) int64.
        block: side of a block, b, that divides H.

    Returns:
        Rows, (N, C).

    Raises:
        ValueError: a block that does not divide H.
    """
    if block < 1 or w1.shape[1] % block:
        raise ValueError(f"block must divide the {w1.shape[1]} hidden channels, got {block}; choose another")
    groups = group_rows(experts, len(w1))
    filled = padded_sizes(groups.sizes, block)
    topology = block_diagonal(groups.sizes, w1.shape[1], block, device=x.device)
    # Place of each assignment, (A,): the zeros that fill up the experts before it push it back.
    starts = zip(accumulate(filled, initial=0), accumulate(groups.sizes, initial=0), strict=True)
    pushed = torch.tensor([padded - plain for padded, plain in starts][:-1], device=x.device)
    counts = torch.tensor(groups.sizes, device=x.device)
    places = torch.arange(len(groups.order), device=x.device) + pushed.repeat_interleave(counts)
    # (P, C)
    rows = x.new_zeros(sum(filled), x.shape[1]).index_copy(0, places, x[groups.rows])
    hidden = F.gelu(sdd(rows, w1.flatten(0, 1), topology))
    y = dsd(hidden, w2.flatten(0, 1), topology)[places] * gates.reshape(-1)[groups.order, None]
    return torch.zeros_like(x).index_add(0, groups.rows, y)


class MegaBlocks(nn.Module):
    """Dropless MLP of experts, (…, C) to the same.

    Args:
        dim: C.
        hidden: channels of an expert's hidden layer, H, a multiple of the block.
        num_experts: E.
        top_k: experts of a token, k.
        block: side of a block, b.
        renormalise: whether the gates of a token are divided by their sum.

    Raises:
        ValueError: a hidden layer that the block does not divide.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int,
        num_experts: int = 8,
        top_k: int = 1,
        block: int = 128,
        renormalise: bool = False,
    ) -> None:
        super().__init__()
        if hidden % block:
            raise ValueError(f"hidden must be a multiple of the block of {block}, got {hidden}; choose a smaller block")
        self.top_k, self.block, self.renormalise = top_k, block, renormalise
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden, dim).uniform_(-(hidden**-0.5), hidden**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        gates, experts = top_experts(self.router(rows), self.top_k, renormalise=self.renormalise)
        return megablocks_mlp(rows, self.w1, self.w2, gates, experts, block=self.block).view_as(x)


def _inputs(seed: int, *, rows: int = 13, num_experts: int = 5, top_k: int = 2, skew: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, num_experts, generator=generator)
    scores[:, 1] += skew
    gates, experts = top_experts(scores, top_k)
    return {
        "x": torch.randn(rows, 5, generator=generator),
        "w1": torch.randn(num_experts, 8, 5, generator=generator),
        "w2": torch.randn(num_experts, 8, 5, generator=generator),
        "gates": gates,
        "experts": experts,
    }


def _fast(**given: Tensor) -> Tensor:
    return megablocks_mlp(**given, block=4)


def _reference(**given: Tensor) -> Tensor:
    return expert_mlp_reference(**{**given, "w2": given["w2"].mT})


METHOD = Method(
    id=178,
    name="MegaBlocks",
    kind="operator",
    summary="The hidden layer of all experts is one block-sparse matrix, so that no token is dropped.",
    paper=Paper(
        "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", "T. Gale et al.", 2023, "arXiv:2211.15841"
    ),
    cases={
        "two_of_five": Operator(_fast, _reference, _inputs),
        "one_of_five_skewed": Operator(_fast, _reference, lambda seed: _inputs(seed, top_k=1, skew=3.0)),
        "most_experts_empty": Operator(_fast, _reference, lambda seed: _inputs(seed, rows=3, num_experts=20)),
    },
)
