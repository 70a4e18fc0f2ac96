"""Selective scan with Triton kernels, for CUDA devices: the plain scan, and the scan along routes over a map.

The kernels are defined in `foveal.ops.selective_scan.triton_kernels`, which is imported, and compiled by Triton, on the
first scan. Shapes here: K routes (1 for the plain scan), S places per route.

    u (batch, dim, L), delta (batch, K, dim, L), A (K, dim, states), D and bias (K, dim), start (batch, K, dim, states),
    B and C (batch, K, groups, states, L), or (K, dim, states) if they do not depend on the input, routes (K, S)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from foveal.ops.backends import differentiable_gradients
from foveal.ops.selective_scan.eager import selective_scan_eager
from foveal.ops.selective_scan.native import along_in_torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan_along_triton", "selective_scan_triton"]

# Maximum number of elements of a tile, and of its steps. With 8 elements per thread, ten tiles fit into the registers.
TILE = 1024
STEPS = 64


def _power(number: int) -> int:
    """The smallest power of two that is at least the given number."""
    return 1 << max(0, number - 1).bit_length()


def _tile(channels: int, states: int, steps: int) -> tuple[int, int, int]:
    """Number of channels of a group, states and steps that a program holds at once; powers of two."""
    along = min(STEPS, max(16, _power(steps)), max(16, TILE // _power(states)))
    return min(_power(channels), max(1, TILE // (_power(states) * along))), _power(states), along


def _launch(tile: tuple[int, int, int]) -> dict[str, Any]:
    """Triton options: 8 elements per thread, and fused multiply-adds, the default until version 3.10."""
    return {"num_warps": min(16, max(1, tile[0] * tile[1] * tile[2] // 256)), "enable_fp_fusion": True}


def _strides(*wanted: tuple[Tensor | None, int]) -> list[int]:
    return [step for tensor, axes in wanted for step in ((0,) * axes if tensor is None else tensor.stride())]


def _sum(tensor: Tensor | None, axis: int) -> Tensor | None:
    return None if tensor is None else tensor.sum(axis)


class _Along(torch.autograd.Function):
    """Inputs: u, delta, A, B, C, D, z, bias, start, softplus, routes, and whether gradients are needed."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        u, delta, rates, weights_in, weights_out, skip, gate, bias, start, softplus, routes, keep = given
        (batch, channels, length), (count, _, states) = u.shape, rates.shape
        constant = weights_in.ndim == 3, weights_out.ndim == 3
        groups = next((w.shape[2] for w in (weights_in, weights_out) if w.ndim == 5), 1)
        rates, skip, bias, start, routes = (
            None if t is None else t.contiguous() for t in (rates, skip, bias, start, routes)
        )
        weights_in, weights_out = (w.contiguous() if w.ndim == 3 else w for w in (weights_in, weights_out))
        steps = length if routes is None else routes.shape[1]
        tile = _tile(channels // groups, states, steps)
        chunks = -(-steps // tile[2])
        last = u.new_zeros(batch, count, channels, states, dtype=torch.float32)
        if start is not None:
            last.copy_(start)  # for empty sequences
        kept = u.new_empty(batch, count, channels, chunks, states, dtype=torch.float32) if keep else None
        # (batch, K, dim, L); routes need not visit every position, and are summed in float32
        out = u.new_empty(delta.shape) if routes is None else u.new_zeros(delta.shape, dtype=torch.float32)
        ctx.grid = (batch, count * groups, -(-channels // groups // tile[0]))
        ctx.sizes = (channels, length, steps, groups, states, chunks)
        shared = [None if fixed else w for w, fixed in zip((weights_in, weights_out), constant, strict=True)]
        ctx.strides = _strides((u, 3), (delta, 4), (shared[0], 5), (shared[1], 5), (gate, 3))
        ctx.tile, ctx.options = (softplus, *constant, *tile), _launch(tile)
        tensors = (u, delta, rates, weights_in, weights_out, skip, gate, bias, start, routes)
        if batch and channels and steps:
            from foveal.ops.selective_scan.triton_kernels import forward

            with torch.cuda.device_of(u):
                forward[ctx.grid](*tensors, out, last, kept, *ctx.sizes, *ctx.strides, *ctx.tile, **ctx.options)
        ctx.save_for_backward(*tensors, kept)
        ctx.set_materialize_grads(False)
        return out.sum(1).to(u.dtype), last

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_last: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, routes, kept = ctx.saved_tensors
        u, delta, rates, weights_in, weights_out, skip, gate, bias, start = tensors
        grad = torch.zeros_like(u) if grad is None else grad
        if torch.is_grad_enabled():  # double backward, which the kernel does not support
            scan = partial(along_in_torch, selective_scan_eager, softplus=ctx.tile[0], routes=routes)
            return (*differentiable_gradients(scan, tensors, (grad, of_last)), None, None, None)
        batch, places = u.shape[0], delta.shape
        if of_last is not None:
            of_last = of_last.contiguous()
        of_u, of_delta = (u.new_zeros(places, dtype=torch.float32) for _ in range(2))
        of_gate = None if gate is None else torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        # one per picture, so that programs of different pictures do not write to the same memory
        of_rates, of_skip, of_bias = (
            None if t is None else t.new_zeros(batch, *t.shape, dtype=torch.float32) for t in (rates, skip, bias)
        )
        of_in, of_out = (
            t.new_zeros((batch, *t.shape) if t.ndim == 3 else t.shape, dtype=torch.float32)
            for t in (weights_in, weights_out)
        )
        of_start = None if start is None else start.new_zeros(start.shape, dtype=torch.float32)
        if of_start is not None and of_last is not None:
            of_start.copy_(of_last)  # for empty sequences
        if all(ctx.grid) and ctx.sizes[2]:
            from foveal.ops.selective_scan.triton_kernels import backward

            found = (of_u, of_delta, of_rates, of_in, of_out, of_skip, of_gate, of_bias, of_start)
            strides = [*ctx.strides, *grad.stride()]
            read = (*tensors[:8], routes, kept, grad, of_last)
            with torch.cuda.device_of(u):
                backward[ctx.grid](*read, *found, *ctx.sizes, *strides, *ctx.tile, **ctx.options)
        of_in, of_out = (g.sum(0) if t.ndim == 3 else g for g, t in ((of_in, weights_in), (of_out, weights_out)))
        sums = (_sum(of_rates, 0), of_in, of_out, _sum(of_skip, 0), of_gate, _sum(of_bias, 0))
        summed = (of_u.sum(1), of_delta, *sums, of_start)
        results = (None if g is None else g.to(t.dtype) for g, t in zip(summed, tensors, strict=True))
        return (*results, None, None, None)


def selective_scan_along_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    bias: Tensor | None = None,
    softplus: bool = False,
    routes: Tensor | None = None,
    z: Tensor | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The general form.

    Args:
        u: input, (batch, dim, L).
        delta: step sizes, (batch, K, dim, L), in the order of u, not of the routes.
        A: decay of each state, (K, dim, states).
        B: input weights, (batch, K, groups, states, L), or (K, dim, states) if they do not depend on the input.
        C: output weights, the same.
        D: skip weights, (K, dim).
        bias: bias added to delta, (K, dim).
        softplus: whether softplus is applied to delta.
        routes: positions in the order they are visited, (K, S), none twice on one route, -1 for none; None visits them
            in order.
        z: gate, (batch, dim, L); only without routes.
        start: states before the first step, (batch, K, dim, states); None for zeros.

    Returns:
        Output, (batch, dim, L), in the dtype of `u`, summed over the routes; last states, (batch, K, dim, states),
        float32.
    """
    given = (u, delta, A, B, C, D, z, bias, start)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return _Along.apply(*given, softplus, routes, keep)


def selective_scan_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The plain scan, the same as `selective_scan_reference`.

    Args:
        u: input, (batch, dim, L).
        delta: step sizes, (batch, dim, L).
        A: decay of each state, (dim, states).
        B: input weights, (batch, groups, states, L) or (dim, states).
        C: output weights, the same.
        D: skip weights, (dim,).
        z: gate, (batch, dim, L).
        delta_bias: bias added to delta, (dim,).
        delta_softplus: whether softplus is applied to delta.
        initial_state: state before the first step, (batch, dim, states); None for zeros.

    Returns:
        Output, (batch, dim, L), in the dtype of `u`; last state, (batch, dim, states), float32.
    """
    skip, bias = (None if t is None else t[None] for t in (D, delta_bias))
    weights_in, weights_out = (w[None] if w.ndim == 2 else w[:, None] for w in (B, C))
    start = None if initial_state is None else initial_state[:, None]
    out, last = selective_scan_along_triton(
        u, delta[:, None], A[None], weights_in, weights_out, skip, bias, delta_softplus, None, z, start
    )
    return out, last[:, 0]
