"""The linear layers of several experts with torch's own grouped product: one kernel for all experts on a GPU.

It needs the rows gathered in the order of the experts first. On a processor it is a loop over the experts, as fast as
the eager path and larger by that copy, so it is taken by itself on GPUs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from foveal.ops.experts.reference import Groups

__all__ = ["expert_linear_grouped", "why_not"]

ALIGNED = 16  # bytes that a row must be a multiple of


def why_not(weight: Tensor) -> str | None:
    """Why torch's grouped product cannot run.

    Args:
        weight: weights of the call, (E, M, K).

    Returns:
        None if it can, else the reason and what to do.
    """
    if not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped product; install a newer one"
    if weight.dtype not in {torch.float32, torch.bfloat16, torch.float16}:
        return f"it takes float32, bfloat16 and float16, and the weight is {str(weight.dtype).removeprefix('torch.')}"
    if any(size * weight.element_size() % ALIGNED for size in weight.shape[1:]):
        return f"rows must be multiples of {ALIGNED} bytes, and the weight is {tuple(weight.shape)}"
    return None


def expert_linear_grouped(
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
    """`expert_linear_reference` by a grouped product of the gathered rows.

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
        (N, …, M) with gates; (N, k, …, M) without, or grouped, (A, …, M).
    """
    order, rows, sizes, top_k = groups
    middle = x.shape[1:-1]
    tokens = middle.numel()
    x = x if activation is None else activation(x)
    part = x if grouped_in else x.index_select(0, rows)
    counts = torch.tensor(sizes, device=x.device)
    ends = (counts.cumsum(0) * tokens).to(torch.int32)
    y = F.grouped_mm(part.reshape(-1, x.shape[-1]), weight.mT, offs=ends)
    if bias is not None:
        y = y + torch.repeat_interleave(bias, counts * tokens, 0, output_size=len(y))
    # (A, …, M)
    y = y.view(len(order), *middle, weight.shape[1])
    if grouped_out:
        return y
    if gates is None:
        return torch.zeros_like(y).index_copy(0, order, y).unflatten(0, (len(order) // top_k, top_k))
    weighted = y * gates.reshape(-1)[order].view(-1, *[1] * (y.ndim - 1))
    return y.new_zeros(len(order) // top_k, *y.shape[1:]).index_add(0, rows, weighted)
