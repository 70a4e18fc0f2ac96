"""Selective scan by Triton kernels, for CUDA devices: the plain scan, and the one along routes over a map.

What the kernels do stands in `foveal.ops.selective_scan.triton_kernels`, which is imported, and compiled by Triton,
when a scan first runs. Shapes here: K routes (1 for the plain scan), S places a route.

    u (B, C, L), delta (B, K, C, L), A (K, C, D), B and C (B, K, G, D, L), D and bias (K, C), routes (K, S) or None
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan_along_triton", "selective_scan_triton"]

# Numbers of a tile, and its steps along the sequence, at most. With 8 numbers a thread, ten tiles fit its registers.
TILE = 1024
STEPS = 64


def _power(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def _tile(channels: int, states: int, steps: int) -> tuple[int, int, int]:
    """How many channels of a group, states and steps a program holds at once; powers of two."""
    along = min(STEPS, max(16, _power(steps)), max(16, TILE // _power(states)))
    return min(_power(channels), max(1, TILE // (_power(states) * along))), _power(states), along


def _launch(tile: tuple[int, int, int]) -> dict[str, Any]:
    """Options of Triton: 8 numbers a thread, and products fused with sums, as it does of itself until version 3.10."""
    return {"num_warps": min(16, max(1, tile[0] * tile[1] * tile[2] // 256)), "enable_fp_fusion": True}


def _strides(*wanted: tuple[Tensor | None, int]) -> list[int]:
    return [step for tensor, axes in wanted for step in ((0,) * axes if tensor is None else tensor.stride())]


def _sum(tensor: Tensor | None, axis: int) -> Tensor | None:
    return None if tensor is None else tensor.sum(axis)


class _Along(torch.autograd.Function):
    """Takes u, delta, A, B, C, D, z, bias, softplus, routes, and whether there will be gradients."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        u, delta, rates, weights_in, weights_out, skip, gate, bias, softplus, routes, keep = given
        (batch, channels, length), (count, _, states), groups = u.shape, rates.shape, weights_in.shape[2]
        rates, skip, bias, routes = (None if t is None else t.contiguous() for t in (rates, skip, bias, routes))
        steps = length if routes is None else routes.shape[1]
        tile = _tile(channels // groups, states, steps)
        chunks = -(-steps // tile[2])
        last = u.new_zeros(batch, count, channels, states, dtype=torch.float32)
        kept = u.new_empty(batch, count, channels, chunks, states, dtype=torch.float32) if keep else None
        # (B, K, C, L); routes need not come everywhere, and are summed in float32
        out = u.new_empty(delta.shape) if routes is None else u.new_zeros(delta.shape, dtype=torch.float32)
        ctx.grid = (batch, count * groups, -(-channels // groups // tile[0]))
        ctx.sizes = (channels, length, steps, groups, states, chunks)
        ctx.strides = _strides((u, 3), (delta, 4), (weights_in, 5), (weights_out, 5), (gate, 3))
        ctx.tile, ctx.options = (softplus, *tile), _launch(tile)
        tensors = (u, delta, rates, weights_in, weights_out, skip, gate, bias, routes)
        if batch and channels and steps:
            from foveal.ops.selective_scan.triton_kernels import forward

            with torch.cuda.device_of(u):
                forward[ctx.grid](*tensors, out, last, kept, *ctx.sizes, *ctx.strides, *ctx.tile, **ctx.options)
        ctx.save_for_backward(*tensors, kept)
        ctx.mark_non_differentiable(last)
        return out.sum(1).to(u.dtype), last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, routes, kept = ctx.saved_tensors
        u, delta, rates, weights_in, weights_out, skip, gate, bias = tensors
        batch, places = u.shape[0], delta.shape
        of_u, of_delta = (u.new_zeros(places, dtype=torch.float32) for _ in range(2))
        of_gate = None if gate is None else torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        # one for each picture, because programs of several pictures meet in them
        of_rates, of_skip, of_bias = (
            None if t is None else t.new_zeros(batch, *t.shape, dtype=torch.float32) for t in (rates, skip, bias)
        )
        of_in, of_out = (t.new_zeros(t.shape, dtype=torch.float32) for t in (weights_in, weights_out))
        if all(ctx.grid) and ctx.sizes[2]:
            from foveal.ops.selective_scan.triton_kernels import backward

            found = (of_u, of_delta, of_rates, of_in, of_out, of_skip, of_gate, of_bias)
            strides = [*ctx.strides, *grad.stride()]
            with torch.cuda.device_of(u):
                backward[ctx.grid](*tensors, routes, kept, grad, *found, *ctx.sizes, *strides, *ctx.tile, **ctx.options)
        summed = (of_u.sum(1), of_delta, _sum(of_rates, 0), of_in, of_out, _sum(of_skip, 0), of_gate, _sum(of_bias, 0))
        results = (None if g is None else g.to(t.dtype) for g, t in zip(summed, tensors, strict=True))
        return (*results, None, None, None)


def selective_scan_along_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    bias: Tensor | None = None,
    softplus: bool = False,
    routes: Tensor | None = None,
    z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The general form.

    Args:
        u: (B, C, L).
        delta: (B, K, C, L), in the order of u, not of the routes.
        A: (K, C, D).
        B: (B, K, G, D, L).
        C: (B, K, G, D, L).
        D: (K, C).
        bias: (K, C).
        softplus: whether delta goes through softplus.
        routes: (K, S), places in the order they are visited, none twice on one route, -1 for none; None takes them in
            order.
        z: gate, (B, C, L); only without routes.

    Returns:
        Output, (B, C, L), in the dtype of `u`, summed over the routes; last states, (B, K, C, D), float32, not
        differentiated.
    """
    given = (u, delta, A, B, C, D, z, bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return _Along.apply(*given, softplus, routes, keep)


def selective_scan_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The plain scan, the same as `selective_scan_reference`.

    Args:
        u: (B, C, L).
        delta: (B, C, L).
        A: (C, D).
        B: (B, G, D, L).
        C: (B, G, D, L).
        D: (C,).
        z: (B, C, L).
        delta_bias: (C,).
        delta_softplus: whether delta goes through softplus.

    Returns:
        Output, (B, C, L), in the dtype of `u`; last state, (B, C, D), float32.
    """
    skip, bias = (None if t is None else t[None] for t in (D, delta_bias))
    out, last = selective_scan_along_triton(
        u, delta[:, None], A[None], B[:, None], C[:, None], skip, bias, delta_softplus, None, z
    )
    return out, last[:, 0]
