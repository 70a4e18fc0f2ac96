"""State space duality with one Triton kernel, for CUDA devices, forward and backward.

The kernel computes F of `foveal.ops.ssd.attention`. It is defined in `foveal.ops.ssd.triton_kernel`, which is imported,
and compiled by Triton, on the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foveal.ops.ssd.attention import attend_gradients, moved

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["attend_triton"]

# Fused multiply-adds, Triton's default until version 3.10.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def _power(number: int) -> int:
    """The smallest power of two that is at least the given number, and at least 16 as Triton's products require."""
    return 1 << max(4, (number - 1).bit_length())


def _attend(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, start: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    """F: launch the kernel."""
    from foveal.ops.ssd import triton_kernel

    if backward:
        out, last = _attend(q.flip(1), k.flip(1), v.flip(1), moved(rates), start, False)
        return out.flip(1), last
    (batch, length, heads), states, channels = rates.shape, q.shape[3], v.shape[3]
    out, last = v.new_empty(batch, length, heads, channels), v.new_empty(start.shape)
    across = min(64, _power(channels))
    triton_kernel.chunks[(batch * heads, -(-channels // across))](
        *(t.contiguous() for t in (q, k, v, rates, start)), out, last,
        length, heads, q.shape[2], k.shape[2], v.shape[2], states, channels,
        T=32 if _power(states) > 64 else 64, N=_power(states), P=across, **LAUNCH,
    )  # fmt: skip
    return out, last


class _Attend(torch.autograd.Function):
    """Inputs: q, k, v, rates, start, and whether it runs in reverse time."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        made = _attend(*given)
        ctx.save_for_backward(*given[:5], *made)
        ctx.backward_in_time = given[5]
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given, made = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        found = attend_gradients(_Attend.apply, given, made, gradients, ctx.backward_in_time)  # type: ignore[arg-type]
        return *found, None


def attend_triton(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """F in forward time, with the kernel, in chunks that fit into its registers.

    Args:
        q: queries, (batch, length, groups, states).
        k: keys, (batch, length, groups, states).
        v: values, (batch, length, groups, channels).
        rates: log decays, (batch, length, heads).
        start: state before the first step, (batch, heads, states, channels).

    Returns:
        y, (batch, length, heads, channels), and the last state, (batch, heads, states, channels).
    """
    return _Attend.apply(q, k, v, rates, start, False)  # type: ignore[no-any-return, no-untyped-call]
