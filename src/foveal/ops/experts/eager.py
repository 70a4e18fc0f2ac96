"""The linear layers of several experts with one matrix product an expert, and no grouped copy of rows or gradients.

An expert's rows are read by index where its product needs them and its results added by index where they belong, so
that at any time only one expert's rows exist a second time. For the gradients only the arguments are kept: an
activation is applied again to an expert's rows, and the gradient of a gate is ⟨Wᵀ dy, x⟩, whose left side that of x
needs anyway, so neither activated rows nor outputs before the gates are ever stored whole.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.ops.backends import differentiable_gradients
from foveal.ops.experts.reference import Groups, expert_linear_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["expert_linear_eager"]


def _spans(sizes: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, and where they stand."""
    ends = accumulate(sizes, initial=0)
    return ((e, slice(start, end)) for e, (start, end) in enumerate(pairwise(ends)) if end > start)


def _wide(gates: Tensor, at: Tensor) -> Tensor:
    """Gates of some assignments, (n, 1, 1)."""
    return gates.reshape(-1)[at].view(-1, 1, 1)


class _Experts(torch.autograd.Function):
    """On x, (N or A, T, K); results (N or A, T, M)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gates: Tensor | None,
        groups: Groups,
        activation: Callable[[Tensor], Tensor] | None,
        grouped_in: bool,
        grouped_out: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, gates, groups.order, groups.rows)
        ctx.said = groups.sizes, groups.top_k, activation, grouped_in, grouped_out
        order, rows, sizes, top_k = groups
        tokens, out = x.shape[1], weight.shape[1]
        y = x.new_empty(len(order), tokens, out) if gates is None else x.new_zeros(len(order) // top_k, tokens, out)
        for e, span in _spans(sizes):
            part = (x[span] if grouped_in else x.index_select(0, rows[span])).flatten(0, 1)
            part = part if activation is None else activation(part)
            if grouped_out:
                place = y[span].view(-1, out)
                torch.mm(part, weight[e].t(), out=place)
                if bias is not None:
                    place.add_(bias[e])
                continue
            made = part @ weight[e].t() if bias is None else torch.addmm(bias[e], part, weight[e].t())
            made = made.view(-1, tokens, out)
            if gates is None:
                y.index_copy_(0, order[span], made)
            else:
                y.index_add_(0, rows[span], made.mul_(_wide(gates, order[span])))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gates, order, rows = ctx.saved_tensors
        sizes, top_k, activation, grouped_in, grouped_out = ctx.said
        if torch.is_grad_enabled():  # the caller wants to differentiate these gradients too
            run = partial(_plain, Groups(order, rows, sizes, top_k), activation, grouped_in, grouped_out)
            return (*differentiable_gradients(run, (x, weight, bias, gates), (gradient,)), *[None] * 4)
        needs = ctx.needs_input_grad
        of_x = (torch.empty_like if grouped_in else torch.zeros_like)(x, memory_format=torch.contiguous_format)
        of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs[1] else None
        of_bias = None if bias is None else torch.zeros_like(bias)
        of_gates = None if gates is None else torch.zeros_like(gates.reshape(-1))
        for e, span in _spans(sizes):
            given = part = x[span] if grouped_in else x.index_select(0, rows[span])
            if activation is not None:
                with torch.enable_grad():
                    given = given.detach().requires_grad_()
                    acted = activation(given)
                part = acted.detach()
            if grouped_out:
                outgoing = gradient[span]
            else:
                outgoing = gradient.index_select(0, order[span] if gates is None else rows[span])
            if needs[0] or needs[3]:
                straight = grouped_in and activation is None
                back = of_x[span] if straight else torch.empty_like(part, memory_format=torch.contiguous_format)
                torch.mm(outgoing.flatten(0, 1), weight[e], out=back.view(-1, back.shape[2]))
                if of_gates is not None:
                    inner = torch.linalg.vecdot(back.flatten(1), part.flatten(1))
                    if bias is not None:
                        inner = inner + (outgoing @ bias[e]).sum(1)
                    of_gates[order[span]] = inner
                    back.mul_(_wide(gates, order[span]))
                if activation is not None:
                    (back,) = torch.autograd.grad(acted, given, back)
                if not grouped_in:
                    of_x.index_add_(0, rows[span], back)
                elif not straight:
                    of_x[span] = back
            if gates is not None:
                outgoing = outgoing * _wide(gates, order[span])
            if of_weight is not None:
                torch.mm(outgoing.flatten(0, 1).t(), part.flatten(0, 1), out=of_weight[e])
            if of_bias is not None:
                of_bias[e] = outgoing.sum((0, 1))
        if of_weight is not None:
            for e, size in enumerate(sizes):
                if not size:
                    of_weight[e].zero_()
        of_gates = of_gates.view_as(gates) if of_gates is not None else None
        return of_x if needs[0] else None, of_weight, of_bias, of_gates, None, None, None, None


def _plain(
    groups: Groups,
    activation: Callable[[Tensor], Tensor] | None,
    grouped_in: bool,
    grouped_out: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gates: Tensor | None,
) -> Tensor:
    words = {"activation": activation, "grouped_in": grouped_in, "grouped_out": grouped_out}
    y = expert_linear_reference(x, weight, groups, bias, gates, **words)  # type: ignore[arg-type]
    return y.flatten(0, 1) if gates is None and not grouped_out else y


def expert_linear_eager(
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
    """`expert_linear_reference`, expert by expert.

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
    middle, count = x.shape[1:-1], len(groups.order)
    flat = x.reshape(x.shape[0], middle.numel(), x.shape[-1])
    said = groups, activation, grouped_in, grouped_out
    y: Tensor = _Experts.apply(flat, weight, bias, gates, *said)  # type: ignore[no-untyped-call]
    if gates is None and not grouped_out:
        return y.view(count // groups.top_k, groups.top_k, *middle, weight.shape[1])
    return y.view(y.shape[0], *middle, weight.shape[1])
