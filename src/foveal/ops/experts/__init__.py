"""Linear layers of several experts: rows sorted by expert, one product an expert, results back in place, no padding.

    scores (N, E) → top_experts → gates, experts (N, k) → group_rows → groups
    hidden = expert_linear(x, w1, groups, grouped_out=True)                      (A, M), A = N·k
    y = expert_linear(hidden, w2, groups, gates=gates, activation=F.gelu, grouped_in=True)   (N, C)

`topology` holds the same as products of block-sparse matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.experts.eager import expert_linear_eager
from foveal.ops.experts.grouped import expert_linear_grouped, why_not
from foveal.ops.experts.reference import Groups, expert_linear_reference, group_rows, top_experts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Groups", "expert_linear", "explain", "group_rows", "top_experts"]


EXPERTS = (
    Backend("eager", expert_linear_eager, lambda _: None),
    Backend("grouped", expert_linear_grouped, why_not),
    Backend("reference", expert_linear_reference, lambda _: None),
)


def _backends(weight: Tensor) -> tuple[Backend, ...]:
    return (EXPERTS[1], EXPERTS[0], EXPERTS[2]) if weight.is_cuda else EXPERTS


def expert_linear(
    x: Tensor,
    weight: Tensor,
    groups: Groups,
    *,
    bias: Tensor | None = None,
    gates: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] | None = None,
    grouped_in: bool = False,
    grouped_out: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Apply to each row the linear layers of the experts it was given to; A = N·k assignments.

    Args:
        x: inputs, (N, …, K), or in the order of the experts, (A, …, K).
        weight: weights of the experts, (E, M, K).
        groups: from `group_rows`.
        bias: biases, (E, M), or None.
        gates: gates, (N, k), that weight the choices of a row before they are added; None adds nothing.
        activation: function of each number of x, without parameters of its own, applied as rows are read; None for
            none. It is applied again for the gradients, so that its results need not be kept.
        grouped_in: whether the rows of x stand in the order of the experts.
        grouped_out: whether those of the result shall.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        (N, …, M) with gates; (N, k, …, M) without, or grouped, (A, …, M).

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if gates are given for a grouped result, the backend is unknown or the tensors are on two devices.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.experts import expert_linear, group_rows
        >>> groups = group_rows(torch.tensor([[1], [0]]), 2)
        >>> expert_linear(torch.ones(2, 1), torch.tensor([[[3.0]], [[5.0]]]), groups, gates=torch.ones(2, 1))
        tensor([[5.],
                [3.]])
    """
    count = len(groups.order)
    wanted = count if grouped_in else count // max(1, groups.top_k)
    if weight.ndim != 3 or len(weight) != len(groups.sizes):
        raise ShapeError(f"weight must be ({len(groups.sizes)} experts, out, in), got {tuple(weight.shape)}")
    if x.ndim < 2 or x.shape[0] != wanted or x.shape[-1] != weight.shape[2]:
        of = "assignments in the order of the experts" if grouped_in else "rows"
        raise ShapeError(f"x must be ({wanted} {of}, …, {weight.shape[2]}), got {tuple(x.shape)}")
    if bias is not None:
        check_shape("bias", bias, tuple(weight.shape[:2]), "one row for each expert")
    if gates is not None:
        if grouped_out:
            raise ValueError("gates add the choices of a row, got them for a grouped result; drop one of the two")
        check_shape("gates", gates, (count // groups.top_k, groups.top_k), "one for each choice of a row")
    check_alike({"x": x, "weight": weight, "bias": bias, "gates": gates})
    common = torch.promote_types(x.dtype, weight.dtype)
    given = [None if t is None else t.to(common) for t in (bias, gates)]
    chosen = choose(_backends(weight), backend, weight)
    with in_full_precision(x):
        words = {"activation": activation, "grouped_in": grouped_in, "grouped_out": grouped_out}
        return chosen.run(x.to(common), weight.to(common), groups, *given, **words)


def explain(weight: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        weight: weights of the call, (E, M, K); None stands for float32 on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    weight = torch.empty(1, 16, 16) if weight is None else weight
    return reasons(_backends(weight), weight)
