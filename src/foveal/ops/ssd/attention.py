"""State space duality as linear attention with decay, whose gradients are the same function.

With q = C, k = B, v_t = dt_t · x_t and log decays r_t = dt_t · A, the recurrence is

    F(q, k, v, r, S₀): S_t = exp(r_t) S_{t-1} + k_t v_tᵀ,  y_t = S_tᵀ q_t

In reverse time, with r shifted by one step,

    dv = F(k, q, dy, r, dS_L),  dk = F(v, dy, q, r, dS_Lᵀ),  dS₀ = exp(r_0) · last state of the former

in forward time dq = F(dy, v, k, r, S₀ᵀ); and as y depends on the cumulative sums c of r only through exp(c_i - c_j),

    dc = y · dy - v · dv, plus dS_L · S_L at the last step;  dr_t = Σ_{i≥t} dc_i

so an implementation of F, native or on a GPU, gives all gradients, and only inputs and outputs are saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.ssd.reference import prepared, skipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    # q and k (batch, length, groups, states), v (batch, length, groups, channels), each with its own number of groups,
    # rates (batch, length, heads), start (batch, heads, states, channels), and whether it runs in reverse time, where
    # each step decays the state of the step after it
    Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]

__all__ = ["attend_gradients", "moved", "ssd_by"]


def _of_groups(gradient: Tensor, groups: int) -> Tensor:
    """Sums over the heads of each group, (batch, length, heads, …) to (batch, length, groups, …)."""
    return gradient.unflatten(2, (groups, -1)).sum(3)


def moved(rates: Tensor) -> Tensor:
    """Rates of the reversed sequence, on which a pass in reverse time becomes one in forward time.

    Args:
        rates: log decays, (batch, length, heads).

    Returns:
        The same shape; the first is 0, since nothing precedes it.
    """
    return torch.cat([torch.zeros_like(rates[:, :1]), rates[:, 1:].flip(1)], 1)


def attend_gradients(
    attend: Attend,
    given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    made: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor],
    backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of F, differentiable if F is.

    Args:
        attend: F.
        given: inputs of F: q, k, v, rates and start.
        made: outputs of F: y, (batch, length, heads, channels), and the last state, (batch, heads, states, channels).
        gradients: gradients of the outputs.
        backward: whether F ran in reverse time.

    Returns:
        Gradients of the inputs.
    """
    (q, k, v, rates, start), (out, last) = given, made
    if backward:
        reversed_ = q.flip(1), k.flip(1), v.flip(1), moved(rates), start
        found = attend_gradients(attend, reversed_, (out.flip(1), last), (gradients[0].flip(1), gradients[1]), False)
        return found[0].flip(1), found[1].flip(1), found[2].flip(1), moved(found[3]), found[4]
    of_out, of_last = (gradient.contiguous() for gradient in gradients)
    turned = of_last.transpose(-1, -2).contiguous()
    of_v, reached = attend(k, q, of_out, rates, of_last, True)
    of_k, _ = attend(v, of_out, q, rates, turned, True)
    of_q, _ = attend(of_out, v, k, rates, start.transpose(-1, -2).contiguous(), False)
    each = v.repeat_interleave(out.shape[2] // v.shape[2], 2)
    of_sums = (of_out * out).sum(-1) - (of_v * each).sum(-1)
    of_sums[:, -1] += (of_last * last).sum((-1, -2))
    of_rates = of_sums.flip(1).cumsum(1).flip(1)
    of_start = rates[:, 0].exp()[..., None, None] * reached
    of_q, of_k, of_v = (_of_groups(g, t.shape[2]) for g, t in ((of_q, q), (of_k, k), (of_v, v)))
    return of_q, of_k, of_v, of_rates, of_start


def ssd_by(
    attend: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,  # noqa: ARG001 - the implementation of F chooses its own chunks
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`ssd_reference` in terms of F.

    Args:
        attend: F in forward time, differentiable; takes q, k, v, rates and start, float32.
        x: input, (batch, length, heads, channels).
        dt: step sizes, (batch, length, heads).
        A: decays, (heads,).
        B: input weights, (batch, length, groups, states).
        C: output weights, (batch, length, groups, states).
        D: skip weights, (heads,) or (heads, channels).
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.
        chunk_size: ignored.
        initial_state: S before the first step, (batch, heads, channels, states); None for zero.

    Returns:
        Output, (batch, length, heads, channels), in the dtype of `x`; last state, (batch, heads, channels, states).
    """
    wide_x, step, decay = prepared(x, dt, A, dt_bias, dt_softplus)
    shape = (x.shape[0], x.shape[2], B.shape[3], x.shape[3])
    start = wide_x.new_zeros(shape) if initial_state is None else initial_state.to(wide_x.dtype).transpose(-1, -2)
    if not x.numel() or not B.shape[3]:
        return skipped(torch.zeros_like(wide_x), wide_x, D).to(x.dtype), start.transpose(-1, -2)
    y, last = attend(C.float(), B.float(), wide_x * step[..., None], step * decay, start)
    return skipped(y, wide_x, D).to(x.dtype), last.transpose(-1, -2)
