"""Selective scan with the compiled kernel, registered with torch for autograd, `torch.compile` and export.

One registered operator, `foveal::selective_scan`, serves the plain scan and the scan along routes over an image; see
kernels/cpp/selective_scan.cpp for the kernel. Shapes here: K routes (1 for the plain scan), S places per route.

    u (batch, dim, L), delta (batch, K, dim, L), A (K, dim, states), D and bias (K, dim), start (batch, K, dim, states),
    B and C (batch, K, groups, states, L), or (K, dim, states) if they do not depend on the input, routes (K, S)
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.backends import differentiable_gradients
from foveal.ops.native import library, tell_once
from foveal.ops.selective_scan.eager import selective_scan_eager
from foveal.ops.selective_scan.onnx import selective_scan_symbolic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["along_in_torch", "selective_scan_along", "selective_scan_native"]


def along_in_torch(
    core: Callable[..., tuple[Tensor, Tensor]],
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    start: Tensor | None, softplus: bool, routes: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The general form in torch, on top of a plain scan.

    Args:
        core: plain scan, without gate, bias and softplus.
        u: input, (batch, dim, L).
        delta: step sizes, (batch, K, dim, L).
        A: decay of each state, (K, dim, states).
        B: input weights, (batch, K, groups, states, L) or (K, dim, states).
        C: output weights, the same.
        D: skip weights, (K, dim).
        z: gate, (batch, dim, L).
        bias: bias added to delta, (K, dim).
        start: states before the first step, (batch, K, dim, states).
        softplus: whether softplus is applied to delta.
        routes: positions in the order they are visited, (K, S).

    Returns:
        Output, (batch, dim, L), and last states, (batch, K, dim, states).
    """
    (batch, dim, length), count = u.shape, delta.shape[1]
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    steps = delta.to(wide) if bias is None else delta.to(wide) + bias.to(wide)[..., None]
    steps = F.softplus(steps) if softplus else steps
    x = u[:, None].expand(-1, count, -1, -1)
    there = skipped = None
    if routes is not None:
        there, skipped = routes.clamp(min=0).long(), routes < 0
        place = there[None, :, None].expand(batch, -1, dim, -1)
        # A skipped place has a step of 0, so the state is unchanged.
        x, steps = x.gather(3, place), steps.gather(3, place).masked_fill(skipped[:, None], 0)
        place = there[None, :, None, None].expand(batch, -1, B.shape[2], B.shape[3], -1)
        B, C = B.gather(4, place), C.gather(4, place)
    out, last = core(
        x.flatten(1, 2), steps.flatten(1, 2), A.flatten(0, 1),
        *(w.flatten(0, 1) if w.ndim == 3 else w.flatten(1, 2) for w in (B, C)),
        None if D is None else D.flatten(), initial_state=None if start is None else start.flatten(1, 2),
    )  # fmt: skip
    last = last.unflatten(1, (count, dim))
    if there is None or skipped is None:
        out = out if z is None else (out.to(wide) * F.silu(z.to(wide))).to(u.dtype)
        return out, last
    out = out.unflatten(1, (count, dim)).masked_fill(skipped[:, None], 0)
    merged = out.new_zeros(batch, dim, length)
    for k in range(count):
        merged = merged.index_add(2, there[k], out[:, k])
    return merged, last


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _channels_last(tensor: Tensor) -> Tensor:
    """The same values with the channels, the second-to-last axis, contiguous in memory."""
    return tensor if tensor.stride(-2) == 1 else tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _groups(B: Tensor, C: Tensor) -> int:
    """Number of groups of channels with their own weights; constant weights need no groups."""
    return next((w.shape[2] for w in (B, C) if w.ndim == 5), 1)


def _prepared(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    start: Tensor | None, softplus: bool, routes: Tensor | None,
) -> tuple[Any, Any, list[Tensor | None]]:  # fmt: skip
    """Sizes, strides and pointers for the kernel; the tensors are returned to keep them alive during the call."""
    from foveal_kernels import calls

    groups = _groups(B, C)
    constant = [int(w.ndim == 3) for w in (B, C)]
    u, delta = u.float(), delta.float()
    if routes is not None:
        u, delta = _channels_last(u), _channels_last(delta)
        routes = routes.to(torch.int32).contiguous()
    B, C = (w.float().contiguous() if w.ndim == 3 else w.float() for w in (B, C))
    z = None if z is None else z.float()
    A = A.float().contiguous()
    D, bias, start = (None if t is None else t.float().contiguous() for t in (D, bias, start))
    shape = calls.ScanShape(
        u.shape[0],
        u.shape[1],
        A.shape[2],
        groups,
        delta.shape[1],
        u.shape[2] if routes is None else routes.shape[1],
        int(softplus),
        *constant,
        *u.stride(),
        *delta.stride(),
        *(step for w in (B, C) for step in ((0,) * 5 if w.ndim == 3 else w.stride())),
        *((0, 0, 0) if z is None else z.stride()),
    )
    keep = [routes, u, delta, A, B, C, D, z, bias, start]
    return shape, calls.ScanData(*map(_pointer, keep)), keep


def _like(tensor: Tensor, routes: Tensor | None) -> Tensor:
    """Uninitialised float32 memory for a sequence, (…, dim, L), in the layout that suits the kernel."""
    if routes is None:
        return torch.empty_like(tensor, dtype=torch.float32)
    *others, dim, length = tensor.shape
    return tensor.new_empty(*others, length, dim, dtype=torch.float32).transpose(-1, -2)


def _gradients_like(inputs: Sequence[Any], routes: Tensor | None) -> list[Tensor]:
    """Uninitialised float32 memory for the gradient of each input, empty where there is no input.

    Compiled code assumes that the operator's outputs have the strides seen while tracing; both use this function.
    """
    u, delta, A, B, C, D, z, bias, start = inputs
    none = u.new_empty(0)

    def plain(tensor: Tensor | None) -> Tensor:
        return none if tensor is None else tensor.new_empty(tensor.shape, dtype=torch.float32)

    def weights(tensor: Tensor) -> Tensor:
        return plain(tensor) if tensor.ndim == 3 else plain(tensor.transpose(-1, -2)).transpose(-1, -2)

    of_z = none if z is None else _like(u, routes)
    rest = [plain(t) for t in (bias, start)]
    return [_like(u, routes), _like(delta, routes), plain(A), weights(B), weights(C), plain(D), of_z, *rest]


def _checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor, routes: Tensor | None) -> tuple[int, ...]:
    kernels = library()
    assert kernels is not None
    lanes, block = kernels.foveal_lanes(), kernels.foveal_steps()
    steps, groups = u.shape[2] if routes is None else routes.shape[1], _groups(B, C)
    blocks = groups * -(-(u.shape[1] // groups) // lanes)
    return u.shape[0], A.shape[0], -(-steps // block), blocks, A.shape[2], lanes


def _native(u: Tensor) -> bool:
    if u.dtype == torch.float64:  # the kernel's exponential is accurate to float32 only
        return False
    if library() is None:
        tell_once("selective_scan")
        return False
    return True


def _call(name: str, *arguments: Any) -> None:
    if getattr(library(), name)(*arguments, torch.get_num_threads()):
        raise MemoryError("out of memory in a selective scan; use a smaller batch or a shorter sequence")


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    start: Tensor | None, softplus: bool, routes: Tensor | None, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    given = (u, delta, A, B, C, D, z, bias, start, softplus, routes)
    if not _native(u):
        out, last = along_in_torch(selective_scan_eager, *given)
        return out.to(u.dtype).contiguous(), last.contiguous(), u.new_empty(0, dtype=torch.float32)
    shape, data, alive = _prepared(*given)
    out = _like(u, routes)
    last = u.new_empty(u.shape[0], *A.shape, dtype=torch.float32)
    checkpoints = u.new_empty(_checkpoint_shape(u, A, B, C, routes) if keep else 0, dtype=torch.float32)
    if routes is not None:
        out.zero_()  # routes need not visit every position
    if u.numel():
        shape.out_batch, shape.out_channel, shape.out_place = out.stride()
        data.out, data.last, data.checkpoints = _pointer(out), _pointer(last), _pointer(checkpoints)
        _call("foveal_scan_forward", ctypes.byref(shape), ctypes.byref(data))
    elif start is None:
        last.zero_()
    else:
        last.copy_(start)
    del alive
    return out.to(u.dtype), last, checkpoints


def _backward(
    grad: Tensor, of_last: Tensor | None,
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    start: Tensor | None, softplus: bool, routes: Tensor | None, checkpoints: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, bias and start, empty where there is no such input."""
    inputs = (u, delta, A, B, C, D, z, bias, start)
    if checkpoints.ndim == 1:  # the forward pass ran in torch
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in inputs]
        with torch.enable_grad():
            made = along_in_torch(selective_scan_eager, *leaves, softplus, routes)  # type: ignore[call-arg]
        outgoing = [grad, torch.zeros_like(made[1]) if of_last is None else of_last]
        present = [t for t in leaves if t is not None]
        each = iter(torch.autograd.grad(made, present, outgoing, allow_unused=True))
        return [u.new_empty(0) if t is None else _or_zero(next(each), t) for t in leaves]
    found = _gradients_like(inputs, routes)
    of_u, of_delta, of_rates, of_in, of_out, of_skip, of_z, of_bias, of_start = found
    if not u.numel():
        for gradient in found:
            gradient.zero_()
        if start is not None and of_last is not None:
            of_start.copy_(of_last)
        return [g if t is None else g.to(t.dtype) for t, g in zip(inputs, found, strict=True)]
    shape, data, alive = _prepared(*inputs, softplus, routes)
    from foveal_kernels import calls

    batch, _, length = u.shape
    threads = torch.get_num_threads()
    parts = max(1, min(checkpoints.shape[3], -(-threads // batch)))
    if routes is not None:
        of_u.zero_()
        of_delta.zero_()
    # One per picture, so that tasks of different pictures do not write to the same memory.
    rates = u.new_empty(batch, *A.shape, dtype=torch.float32)
    skips, biases = (u.new_empty(batch, *A.shape[:2], dtype=torch.float32) for _ in range(2))
    # (parts, batch, K, groups, L, states), and (batch, K, dim, states) of constants
    rows = (parts, batch, A.shape[0], shape.groups, length, A.shape[2])
    ins, outs = (u.new_zeros((batch, *A.shape) if w.ndim == 3 else rows, dtype=torch.float32) for w in (B, C))
    # The kernel reads the gradient with the strides of its output.
    incoming = torch.empty_strided(of_u.shape, of_u.stride()).copy_(grad)
    ends = None if of_last is None else of_last.float().contiguous()
    shape.out_batch, shape.out_channel, shape.out_place = of_u.stride()
    written = (incoming, ends, checkpoints, of_u, of_z, of_delta, rates, skips, biases, of_start, ins, outs)
    gradients = calls.ScanGradients(*map(_pointer, written), *of_delta.stride(), parts, length)
    _call("foveal_scan_backward", *map(ctypes.byref, (shape, data, gradients)))
    del alive
    torch.sum(rates, 0, out=of_rates)
    for weights, sums, total in ((B, ins, of_in), (C, outs, of_out)):
        torch.sum(sums, 0, out=total if weights.ndim == 3 else total.transpose(-1, -2))
    for tensor, sums, total in ((D, skips, of_skip), (bias, biases, of_bias)):
        if tensor is not None:
            torch.sum(sums, 0, out=total)
    return [g if t is None else g.to(t.dtype) for t, g in zip(inputs, found, strict=True)]


def _or_zero(gradient: Tensor | None, of: Tensor) -> Tensor:
    return of.new_zeros(of.shape) if gradient is None else gradient.contiguous()


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor? start, "
    "bool softplus, Tensor? routes"
)
_LIBRARY = torch.library.Library("foveal", "FRAGMENT")
_LIBRARY.define(f"selective_scan({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"selective_scan_backward(Tensor grad, Tensor? of_last, {_ARGUMENTS}, Tensor checkpoints) -> Tensor[]")
_LIBRARY.impl("selective_scan", _forward, "CPU")
_LIBRARY.impl("selective_scan_backward", _backward, "CPU")


@torch.library.register_fake("foveal::selective_scan", lib=_LIBRARY)
def _fake_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    start: Tensor | None, softplus: bool, routes: Tensor | None, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del delta, D, z, bias, start, softplus
    native = u.dtype != torch.float64 and library() is not None
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    out = _like(u, routes).to(u.dtype) if native else torch.empty_like(u, memory_format=torch.contiguous_format)
    kept = _checkpoint_shape(u, A, B, C, routes) if keep and native else 0
    return out, u.new_empty(u.shape[0], *A.shape, dtype=wide), u.new_empty(kept, dtype=torch.float32)


@torch.library.register_fake("foveal::selective_scan_backward", lib=_LIBRARY)
def _fake_backward(grad: Tensor, of_last: Tensor | None, *arguments: Any) -> list[Tensor]:
    del grad, of_last
    *inputs, _, routes, checkpoints = arguments
    if checkpoints.ndim == 1:
        return [inputs[0].new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]
    found = _gradients_like(inputs, routes)
    return [g if t is None else g.to(t.dtype) for t, g in zip(inputs, found, strict=True)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, routes, _ = inputs
    ctx.save_for_backward(*tensors, routes, output[2])
    ctx.softplus = softplus
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad: Tensor | None, of_last: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, routes, checkpoints = ctx.saved_tensors
    grad = torch.zeros_like(tensors[0]) if grad is None else grad
    if torch.is_grad_enabled():  # double backward, which the kernel does not support
        scan = partial(along_in_torch, selective_scan_eager, softplus=ctx.softplus, routes=routes)
        return (*differentiable_gradients(scan, tensors, (grad, of_last)), None, None, None)
    found = torch.ops.foveal.selective_scan_backward(grad, of_last, *tensors, ctx.softplus, routes, checkpoints)
    return (*(None if t is None else g for t, g in zip(tensors, found, strict=True)), None, None, None)


torch.library.register_autograd("foveal::selective_scan", _differentiate, setup_context=_remember, lib=_LIBRARY)


@register_flop_formula(torch.ops.foveal.selective_scan)
def _flops(u: Any, delta: Any, A: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """9 multiply-adds per state and step and one for the skip, the convention of the tables in VMamba's papers."""
    del out_shape
    batch, _, length = u
    _, dim, states = A
    return 2 * batch * delta[1] * length * dim * (9 * states + 1)


def selective_scan_along(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, bias: Tensor | None = None,
    softplus: bool = False, routes: Tensor | None = None, z: Tensor | None = None, start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The registered operator, in the general form.

    Args:
        u: input, (batch, dim, L).
        delta: step sizes, (batch, K, dim, L), in the order of u, not of the routes.
        A: decay of each state, (K, dim, states).
        B: input weights, (batch, K, groups, states, L), or (K, dim, states) if they do not depend on the input.
        C: output weights, the same.
        D: skip weights, (K, dim).
        bias: bias added to delta, (K, dim).
        softplus: whether softplus is applied to delta.
        routes: positions in the order they are visited, (K, S), -1 for none; None visits them in order.
        z: gate, (batch, dim, L); only without routes.
        start: states before the first step, (batch, K, dim, states); None for zeros.

    Returns:
        Output, (batch, dim, L), summed over the routes; last states, (batch, K, dim, states).
    """
    given = (u, delta, A, B, C, D, z, bias, start)
    if torch.onnx.is_in_onnx_export():
        return along_in_torch(selective_scan_symbolic, *given, softplus, routes)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    out, last, _ = torch.ops.foveal.selective_scan(*given, softplus, routes, keep)
    return out, last


def selective_scan_native(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The plain scan.

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
    out, last = selective_scan_along(
        u, delta[:, None], A[None], weights_in, weights_out, skip, bias, delta_softplus, None, z, start
    )
    return out, last[:, 0]
