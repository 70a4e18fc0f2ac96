"""State space duality by one Triton kernel, for CUDA devices, forward and backward.

The kernel computes F of `foveal.ops.ssd.attention`. It stands in `foveal.ops.ssd.triton_kernel`, which is imported, and
compiled by Triton, when it first runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foveal.ops.ssd.attention import attend_gradients, ssd_by

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ssd_triton"]

# Products fused with sums, as Triton does of itself until version 3.10.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def _power(number: int) -> int:
    """The least power of two that is not below a number, at least 16 as Triton's products want."""
    return 1 << max(4, (number - 1).bit_length())


def _attend(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, start: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    """F: the kernel's launch."""
    from foveal.ops.ssd import triton_kernel

    if backward:
        moved = torch.cat([torch.zeros_like(rates[:, :1]), rates[:, 1:].flip(1)], 1)
        out, last = _attend(q.flip(1), k.flip(1), v.flip(1), moved, start, False)
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
    """Takes q, k, v, rates, start."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        made = _attend(*given, False)  # type: ignore[call-arg, arg-type]
        ctx.save_for_backward(*given, *made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return attend_gradients(_attend, ctx.saved_tensors[:5], ctx.saved_tensors[5:], gradients)  # type: ignore[arg-type]


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
    return ssd_by(_Attend.apply, x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
