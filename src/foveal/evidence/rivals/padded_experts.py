"""Rivals of expert layers, plain: a loop over experts, buffers padded to one capacity, the dense one-hot einsum.

All compute y(t) = Σ_j g(t, j) · W2_{e(t, j)} gelu(W1_{e(t, j)} x(t)) for x, (N, C), w1, (E, H, C), w2, (E, C, H),
gates g, (N, k), and experts e, (N, k). The loop and the buffers drop nothing: a buffer holds as many rows an expert as
the fullest one is given.

*Source*: the one-hot einsum is that of D. Lepikhin et al., "GShard: Scaling Giant Models with Conditional Computation
and Automatic Sharding", ICLR 2021 (arXiv:2006.16668), algorithm 1, with all first choices placed before the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.experts import top_experts

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["draw", "einsum_mlp", "loop_mlp", "padded_mlp", "skewed", "with_gradients"]


def skewed(rows: int, num_experts: int, top_k: int, *, unused: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Routing whose loads fall as 1, ½, ⅓, …, as far as k different experts a row allow.

    Args:
        rows: N.
        num_experts: E.
        top_k: k.
        unused: number of experts, the last ones, that no row goes to.
        seed: seed of the draw.

    Returns:
        Gates, (N, k), and experts, (N, k).
    """
    generator = torch.Generator().manual_seed(seed)
    # The largest of logits with Gumbel noise are drawn with probabilities in proportion to their exponentials.
    noise = -torch.rand(rows, num_experts, generator=generator).clamp(min=1e-9).log().neg().log()
    loads = -torch.arange(1, num_experts + 1).float().log()
    loads[num_experts - unused :] = -1e4
    return top_experts(loads + noise, top_k)


def draw(
    rows: int, dim: int, hidden: int, num_experts: int, top_k: int, *, unused: int = 0, seed: int = 0
) -> dict[str, Tensor]:
    """Arguments of an expert MLP under skewed routing.

    Args:
        rows: N.
        dim: C.
        hidden: H.
        num_experts: E.
        top_k: k.
        unused: number of experts without rows.
        seed: seed of the draw.

    Returns:
        x, (N, C), w1, (E, H, C), w2, (E, C, H), gates and experts, (N, k).
    """
    gates, experts = skewed(rows, num_experts, top_k, unused=unused, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(rows, dim, generator=generator),
        "w1": torch.randn(num_experts, hidden, dim, generator=generator) / dim**0.5,
        "w2": torch.randn(num_experts, dim, hidden, generator=generator) / hidden**0.5,
        "gates": gates,
        "experts": experts,
    }


def with_gradients(layer: Callable[..., Tensor], given: dict[str, Tensor]) -> list[Tensor]:
    """A training step's output and gradients.

    Args:
        layer: function of the arguments that `draw` makes.
        given: these arguments.

    Returns:
        Output, gradients of x, w1, w2 and gates.
    """
    leaves = {name: t.detach().requires_grad_() for name, t in given.items() if t.is_floating_point()}
    y = layer(**{**given, **leaves})
    probe = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), probe)]


def loop_mlp(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """Expert by expert: its rows are looked for, gathered, computed, weighted and added.

    Args:
        x: rows, (N, C).
        w1: first weights, (E, H, C).
        w2: second weights, (E, C, H).
        gates: gates, (N, k).
        experts: experts, (N, k).

    Returns:
        Rows, (N, C).
    """
    y = torch.zeros_like(x)
    for e, (first, second) in enumerate(zip(w1.unbind(), w2.unbind(), strict=True)):
        rows, choices = torch.where(experts == e)
        made = F.linear(F.gelu(F.linear(x[rows], first)), second)
        y = y.index_add(0, rows, made * gates[rows, choices, None])
    return y


def _places(experts: Tensor, num_experts: int) -> Tensor:
    """Place of each choice among those of its expert, (N, k), first choices first."""
    hot = F.one_hot(experts.T.reshape(-1), num_experts)
    return (hot.cumsum(0) * hot).sum(1).view(experts.shape[1], -1).T - 1


def padded_mlp(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """One buffer, (E, capacity, C), as long for each expert as the fullest needs, and batched products.

    Args:
        x: rows, (N, C).
        w1: first weights, (E, H, C).
        w2: second weights, (E, C, H).
        gates: gates, (N, k).
        experts: experts, (N, k).

    Returns:
        Rows, (N, C).
    """
    count, places = len(w1), _places(experts, len(w1))
    capacity = int(places.max()) + 1
    slots = (experts * capacity + places).reshape(-1)
    rows = torch.arange(len(x), device=x.device).repeat_interleave(experts.shape[1])
    buffer = x.new_zeros(count * capacity, x.shape[1]).index_copy(0, slots, x[rows]).view(count, capacity, -1)
    made = (F.gelu(buffer @ w1.mT) @ w2.mT).flatten(0, 1)
    return (made[slots].view(*experts.shape, -1) * gates[..., None]).sum(1)


def einsum_mlp(
    x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor, *, capacity: int | None = None
) -> Tensor:
    """Rows to buffers and back by products with a one-hot tensor, (N, E, capacity); what has no place is dropped.

    Args:
        x: rows, (N, C).
        w1: first weights, (E, H, C).
        w2: second weights, (E, C, H).
        gates: gates, (N, k).
        experts: experts, (N, k).
        capacity: rows of an expert; None for as many as the fullest needs.

    Returns:
        Rows, (N, C).
    """
    places = _places(experts, len(w1))
    capacity = int(places.max()) + 1 if capacity is None else capacity
    combine = x.new_zeros(len(x), len(w1), capacity)
    for j in range(experts.shape[1]):
        # a place beyond the capacity has a row of zeros
        slot = F.one_hot(places[:, j].clamp(max=capacity), capacity + 1)[:, :capacity].to(x.dtype)
        expert = F.one_hot(experts[:, j], len(w1)).to(x.dtype)
        combine = combine + gates[:, j, None, None] * expert[:, :, None] * slot[:, None, :]
    dispatch = (combine != 0).to(x.dtype)
    buffer = torch.einsum("nec,nd->ecd", dispatch, x)
    return torch.einsum("nec,ecd->nd", combine, F.gelu(buffer @ w1.mT) @ w2.mT)
