"""Linear layers of several experts, row by row in plain torch, and the order in which a fast path visits the rows.

Row t has k choices; assignment a = t·k + j is its choice j, given to expert e(a) with the gate g(a).

    y(a) = W_{e(a)} act(x(t)) + b_{e(a)}                             (1)
    y(t) = Σ_j g(t·k + j) · y(t·k + j)                               (2)
    order = stable argsort of e: the assignments of expert 0, then those of expert 1, …    (3)

Rows may carry further axes, such as the tokens of a picture that goes to an expert as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.backends import ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Groups", "expert_linear_reference", "expert_mlp_reference", "group_rows", "top_experts"]


class Groups(NamedTuple):
    """Assignments of rows to experts, sorted by expert. Made by `group_rows`, A = N·k.

    Args:
        order: assignments in the order of equation 3, (A,) int64.
        rows: row of each, (A,) int64: order // k.
        sizes: number of assignments of each expert, E numbers.
        top_k: choices of a row, k.
    """

    order: Tensor
    rows: Tensor
    sizes: tuple[int, ...]
    top_k: int


def top_experts(scores: Tensor, top_k: int, *, renormalise: bool = True) -> tuple[Tensor, Tensor]:
    """The experts of largest probability for each row.

    Args:
        scores: logits of the router, (N, E).
        top_k: choices of a row, k, from 1 to E.
        renormalise: whether the gates of a row are divided by their sum; those of one choice are then 1.

    Returns:
        Gates, (N, k), the largest first, and experts, (N, k) int64.

    Raises:
        ShapeError: scores of other than two axes.
        ValueError: fewer than one choice or more than experts.

    Example:
        >>> import torch
        >>> from foveal.ops.experts import top_experts
        >>> top_experts(torch.tensor([[0.0, 2.0, 1.0]]), 2)[1]
        tensor([[1, 2]])
    """
    if scores.ndim != 2:
        raise ShapeError(f"scores must be (rows, experts), got {tuple(scores.shape)}")
    if not 1 <= top_k <= scores.shape[1]:
        raise ValueError(f"top_k must be in 1…{scores.shape[1]}, the number of experts, got {top_k}")
    gates, experts = scores.softmax(1).topk(top_k, 1)
    return (gates / gates.sum(1, keepdim=True) if renormalise else gates), experts


def group_rows(experts: Tensor, num_experts: int) -> Groups:
    """Sort the assignments by expert, equation 3.

    On the meta device, which holds no values, all rows are taken to go to the first expert; shapes and multiply-adds
    do not depend on it.

    Args:
        experts: expert of each choice, (N, k), integers in 0…E−1.
        num_experts: E.

    Returns:
        Order, rows and sizes.

    Raises:
        ShapeError: experts of other than two axes.
        TypeError: experts that are no integers.
        ValueError: an expert that does not exist.
        RuntimeError: in `torch.export`, whose graphs have no shapes that depend on values.

    Example:
        >>> import torch
        >>> from foveal.ops.experts import group_rows
        >>> group_rows(torch.tensor([[1], [0], [1]]), 3).sizes
        (1, 2, 0)
    """
    if torch.compiler.is_exporting():
        raise RuntimeError(
            "rows grouped by expert cannot be exported, got a call while exporting: an expert's number of rows depends "
            "on values; compute with weight[experts] instead, a copy of the chosen weights for each row"
        )
    if experts.ndim != 2:
        raise ShapeError(f"experts must be (rows, choices), got {tuple(experts.shape)}; one choice is (rows, 1)")
    if experts.is_floating_point() or experts.is_complex():
        raise TypeError(f"experts must be integers, got {experts.dtype}; take them from top_experts")
    flat, top_k = experts.reshape(-1).long(), experts.shape[1]
    if flat.is_meta:
        sizes = [flat.shape[0]] + [0] * (num_experts - 1)
    else:
        inside = (flat >= 0) & (flat < num_experts)
        if not bool(inside.all()):
            raise ValueError(f"experts must be in 0…{num_experts - 1}, got {int(flat[~inside][0])}")
        sizes = torch.bincount(flat, minlength=num_experts).tolist()
    order = flat.argsort(stable=True)
    return Groups(order, order // max(1, top_k), tuple(sizes), top_k)


def expert_linear_reference(
    x: Tensor,
    weight: Tensor,
    groups: Groups,
    bias: Tensor | None,
    gates: Tensor | None,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
    grouped_in: bool = False,
    grouped_out: bool = False,
) -> Tensor:
    """Equations 1 and 2, one assignment at a time.

    Args:
        x: inputs, (N, …, K), or in the order of the experts, (A, …, K).
        weight: weights of the experts, (E, M, K).
        groups: from `group_rows`.
        bias: biases, (E, M), or None.
        gates: gates, (N, k), or None.
        activation: function of each number of x, applied as rows are read, or None.
        grouped_in: whether the rows of x stand in the order of the experts.
        grouped_out: whether those of the result shall.

    Returns:
        Equation 2 with gates, (N, …, M); equation 1 without, (N, k, …, M), or grouped, (A, …, M).
    """
    experts = [e for e, size in enumerate(groups.sizes) for _ in range(size)]
    made: list[Tensor | None] = [None] * len(experts)
    for i, (a, expert) in enumerate(zip(groups.order.tolist(), experts, strict=True)):
        given = x[i] if grouped_in else x[a // groups.top_k]
        given = given if activation is None else activation(given)
        made[i if grouped_out else a] = F.linear(given, weight[expert], None if bias is None else bias[expert])
    middle = x.shape[1:-1]
    found = [y for y in made if y is not None]
    y = torch.stack(found) if found else x.new_zeros(0, *middle, weight.shape[1]) + 0 * (x.sum() + weight.sum())
    if grouped_out:
        return y
    y = y.unflatten(0, (-1, groups.top_k)) if found else y.reshape(0, groups.top_k, *middle, weight.shape[1])
    return y if gates is None else (gates.view(*gates.shape, *[1] * (x.ndim - 1)) * y).sum(1)


def expert_mlp_reference(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """MLP of experts, Σ_j g_j W2_e gelu(W1_e x), one row and one choice at a time.

    Args:
        x: rows, (N, C).
        w1: first weights, (E, H, C).
        w2: second weights, (E, C, H).
        gates: gates, (N, k).
        experts: experts, (N, k) integers.

    Returns:
        Rows, (N, C).
    """
    made = [
        torch.stack([g * (w2[e] @ F.gelu(w1[e] @ row)) for g, e in zip(*choices, strict=True)]).sum(0)
        for row, *choices in zip(x, gates, experts.tolist(), strict=True)
    ]
    return torch.stack(made) if made else 0 * x
