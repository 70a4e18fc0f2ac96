"""State space duality by one Triton kernel, for CUDA devices, forward and backward.

With q = C, k = B, v_t = dt_t · x_t and log decays r_t = dt_t · A, the recurrence is linear attention with decay,

    F(q, k, v, r, S₀): S_t = exp(r_t) S_{t-1} + k_t v_tᵀ,  y_t = S_tᵀ q_t

and its gradients are the same function again. Against time, with r moved on by one step,

    dv = F(k, q, dy, r, dS_L),  dk = F(v, dy, q, r, dS_Lᵀ),  dS₀ = exp(r_0) · the last state of the former

along time dq = F(dy, v, k, r, S₀ᵀ); and as y depends on running sums c of r by exp(c_i - c_j) only,

    dc = y · dy - v · dv, and dS_L · S_L more at the last step;  dr_t = Σ_{i≥t} dc_i

so one kernel does all, and nothing is kept but inputs and outputs. `foveal.ops.ssd.triton_kernel` is imported, and
compiled by Triton, when it first runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foveal.ops.ssd.reference import prepared, skipped

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ssd_triton"]

# Products fused with sums, as Triton does of itself until version 3.10.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def _power(number: int) -> int:
    """The least power of two that is not below a number, at least 16 as Triton's products want."""
    return 1 << max(4, (number - 1).bit_length())


def _attend(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """F: q and k (B, L, G, N), v (B, L, G, P), each with groups of its own, rates (B, L, H), start (B, H, N, P)."""
    from foveal.ops.ssd import triton_kernel

    (batch, length, heads), states, channels = rates.shape, q.shape[3], v.shape[3]
    out, last = v.new_empty(batch, length, heads, channels), v.new_empty(start.shape)
    across = min(64, _power(channels))
    triton_kernel.chunks[(batch * heads, -(-channels // across))](
        *(t.contiguous() for t in (q, k, v, rates, start)), out, last,
        length, heads, q.shape[2], k.shape[2], v.shape[2], states, channels,
        T=32 if _power(states) > 64 else 64, N=_power(states), P=across, **LAUNCH,
    )  # fmt: skip
    return out, last


def _attend_back(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """F from the last step to the first; a step decays what comes from the one after it."""
    moved = torch.cat([torch.zeros_like(rates[:, :1]), rates[:, 1:].flip(1)], 1)
    out, last = _attend(q.flip(1), k.flip(1), v.flip(1), moved, start)
    return out.flip(1), last


def _of_groups(gradient: Tensor, groups: int) -> Tensor:
    """Sums over the heads of each group, (B, L, H, …) to (B, L, G, …)."""
    return gradient.unflatten(2, (groups, -1)).sum(3)


class _Attend(torch.autograd.Function):
    """Takes q, k, v, rates, start."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        out, last = _attend(*given)  # type: ignore[call-arg]
        ctx.save_for_backward(*given, out, last)
        return out, last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, rates, start, out, last = ctx.saved_tensors
        of_out, of_last = (gradient.contiguous() for gradient in gradients)
        turned = of_last.transpose(-1, -2).contiguous()
        of_v, reached = _attend_back(k, q, of_out, rates, of_last)
        of_k, _ = _attend_back(v, of_out, q, rates, turned)
        of_q, _ = _attend(of_out, v, k, rates, start.transpose(-1, -2).contiguous())
        of_sums = (of_out * out).sum(-1) - (of_v * v).sum(-1)
        of_sums[:, -1] += (of_last * last).sum((-1, -2))
        of_rates = of_sums.flip(1).cumsum(1).flip(1)
        of_start = rates[:, 0].exp()[..., None, None] * reached
        return _of_groups(of_q, q.shape[2]), _of_groups(of_k, k.shape[2]), of_v, of_rates, of_start


def ssd_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 - the paper's letters
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,  # noqa: ARG001 - the kernel's own fits its registers
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same as `ssd_reference`, by the kernel.

    Args:
        x: input, (B, L, H, P).
        dt: step sizes, (B, L, H).
        A: decays, (H,).
        B: input weights, (B, L, G, N).
        C: output weights, (B, L, G, N).
        D: skip weights, (H,) or (H, P).
        dt_bias: added to dt, (H,).
        dt_softplus: whether dt goes through softplus.
        chunk_size: not asked; the kernel takes chunks that fit its registers.
        initial_state: S before the first step, (B, H, P, N); None for zero.

    Returns:
        Output, (B, L, H, P), in the dtype of `x`; last state, (B, H, P, N).
    """
    wide_x, step, decay = prepared(x, dt, A, dt_bias, dt_softplus)
    shape = (x.shape[0], x.shape[2], B.shape[3], x.shape[3])
    start = wide_x.new_zeros(shape) if initial_state is None else initial_state.to(wide_x.dtype).transpose(-1, -2)
    if not x.numel() or not B.shape[3]:
        return skipped(torch.zeros_like(wide_x), wide_x, D).to(x.dtype), start.transpose(-1, -2)
    y, last = _Attend.apply(C.float(), B.float(), wide_x * step[..., None], step * decay, start)
    return skipped(y, wide_x, D).to(x.dtype), last.transpose(-1, -2)
