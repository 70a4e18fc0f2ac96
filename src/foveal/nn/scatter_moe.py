"""ScatterMoE: a mixture of experts whose linear layers read and write rows by index, without padded or copied groups.

*Source*: S. Tan, Y. Shen, R. Panda, A. Courville, "Scattered Mixture-of-Experts Implementation", 2024
(arXiv:2403.08245), section 3, algorithms 1 and 2; the authors' code is at github.com/shawntan/scattermoe.

Rows x, (N, C), are given to k experts each; A = N·k. The assignments are sorted by expert once. ParallelLinear takes
its rows scattered, as they stand, or grouped, in the order of the experts, and leaves them in either:

    scattered → grouped      h = W1_e x              (N, C) to (A, H)
    grouped → scattered      y = Σ_j g_j W2_e act(h)   (A, H) to (N, C)
    scattered → scattered    (N, C) to (N, k, M), the queries and the output of a mixture of attention
    grouped → grouped        (A, H) to (A, M)

The MLP is the first two. In attention the k experts of a token have num_heads heads each, with queries and output of
their own; keys and values are shared by all experts:

    q_j = Q_e x,  o_j = softmax(q_j Kᵀ / √d) V,  y = Σ_j g_j O_e o_j

*Differs from the paper*: the layers are `foveal.ops.experts.expert_linear`; where the authors' Triton kernel reads rows
tile by tile, on the CPU one matrix product an expert reads them, and at most one expert's rows are copied at a time.
Neither act(h), applied again for the gradients, nor the outputs before the gates, which the paper keeps, are kept: the
gradient of a gate is ⟨Wᵀ dy, x⟩. The router, softmax of a linear layer with the gates of a row normalised, is ours; the
paper takes gates as given.
*Provenance*: written from the paper; the authors' code needs a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.ops.experts import Groups, expert_linear, group_rows, top_experts
from foveal.ops.experts.reference import expert_mlp_reference
from foveal.record import Method, Paper

__all__ = ["ParallelLinear", "ScatterAttention", "ScatterMoE", "scatter_mlp"]


def scatter_mlp(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """MLP of experts, Σ_j g_j W2_e gelu(W1_e x), the hidden rows in the order of the experts.

    Args:
        x: rows, (N, C).
        w1: first weights, (E, H, C).
        w2: second weights, (E, C, H).
        gates: gates, (N, k).
        experts: experts, (N, k) int64.

    Returns:
        Rows, (N, C).
    """
    groups = group_rows(experts, len(w1))
    hidden = expert_linear(x, w1, groups, grouped_out=True)
    return expert_linear(hidden, w2, groups, gates=gates, activation=F.gelu, grouped_in=True)


class ParallelLinear(nn.Module):
    """One linear layer of each expert, without bias; see `foveal.ops.experts.expert_linear` for the shapes.

    Args:
        in_features: inputs, K.
        out_features: outputs, M.
        num_experts: E.
    """

    def __init__(self, in_features: int, out_features: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        nn.init.uniform_(self.weight, -(in_features**-0.5), in_features**-0.5)

    def forward(
        self,
        x: Tensor,
        groups: Groups,
        *,
        gates: Tensor | None = None,
        grouped_in: bool = False,
        grouped_out: bool = False,
    ) -> Tensor:
        return expert_linear(x, self.weight, groups, gates=gates, grouped_in=grouped_in, grouped_out=grouped_out)


class ScatterMoE(nn.Module):
    """MLP of experts, (…, C) to the same.

    Args:
        dim: C.
        hidden: channels of an expert's hidden layer, H.
        num_experts: E.
        top_k: experts of a token, k.
    """

    def __init__(self, dim: int, *, hidden: int, num_experts: int = 8, top_k: int = 2) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.fc1 = ParallelLinear(dim, hidden, num_experts)
        self.fc2 = ParallelLinear(hidden, dim, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        gates, experts = top_experts(self.router(rows), self.top_k)
        return scatter_mlp(rows, self.fc1.weight, self.fc2.weight, gates, experts).view_as(x)


class ScatterAttention(nn.Module):
    """Self-attention whose queries and output have experts, (B, N, C) to the same.

    Args:
        dim: C.
        num_heads: heads of an expert.
        head_dim: channels of a head, d.
        num_experts: E.
        top_k: experts of a token, k.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, num_experts: int = 8, top_k: int = 2) -> None:
        super().__init__()
        self.num_heads, self.top_k = num_heads, top_k
        width = num_heads * head_dim
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.query = ParallelLinear(dim, width, num_experts)
        self.key_value = nn.Linear(dim, 2 * width, bias=False)
        self.out = ParallelLinear(width, dim, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        rows = x.flatten(0, 1)
        gates, experts = top_experts(self.router(rows), self.top_k)
        groups = group_rows(experts, self.router.out_features)
        # (B, heads, k·N, d): each choice of a token asks with queries of its own
        query = self.query(rows, groups).view(batch, tokens * self.top_k, self.num_heads, -1).transpose(1, 2)
        key, value = self.key_value(x).view(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        # Each choice is a row of its own now, with the one expert it has.
        each = groups._replace(rows=groups.order, top_k=1)
        out = self.out(seen.flatten(0, 1), each).view(-1, self.top_k, dim)
        return (out * gates[..., None]).sum(1).view_as(x)


def _inputs(seed: int, *, rows: int = 13, num_experts: int = 5, top_k: int = 2, skew: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, num_experts, generator=generator)
    scores[:, 1] += skew
    gates, experts = top_experts(scores, top_k)
    return {
        "x": torch.randn(rows, 6, generator=generator),
        "w1": torch.randn(num_experts, 7, 6, generator=generator),
        "w2": torch.randn(num_experts, 6, 7, generator=generator),
        "gates": gates,
        "experts": experts,
    }


METHOD = Method(
    id=75,
    name="ScatterMoE",
    kind="operator",
    summary="Experts read their rows and write their results by index, so that nothing is padded or copied in groups.",
    paper=Paper("Scattered Mixture-of-Experts Implementation", "S. Tan et al.", 2024, "arXiv:2403.08245"),
    cases={
        "two_of_five": Operator(scatter_mlp, expert_mlp_reference, _inputs),
        "one_of_five_skewed": Operator(
            scatter_mlp, expert_mlp_reference, lambda seed: _inputs(seed, top_k=1, skew=3.0)
        ),
        "most_experts_empty": Operator(
            scatter_mlp, expert_mlp_reference, lambda seed: _inputs(seed, rows=3, num_experts=20)
        ),
    },
)
