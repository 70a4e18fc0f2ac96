"""Selective scan by the compiled kernel, registered with torch so that autograd, `torch.compile` and export see it.

One registered operator, `foveal::selective_scan`, serves the plain scan and the one along routes over an image; the
kernel itself, kernels/cpp/selective_scan.cpp, says how it works. Shapes here: K routes (1 for the plain scan), S places
a route.

    u (B, C, L), delta (B, K, C, L), A (K, C, D), B and C (B, K, G, D, L), D and bias (K, C), routes (K, S) or None
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.native import library, tell_once
from foveal.ops.selective_scan.eager import selective_scan_eager
from foveal.ops.selective_scan.onnx import selective_scan_symbolic

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["selective_scan_along", "selective_scan_native"]


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "channels", "states", "groups", "routes", "steps", "softplus"),
            *("u_batch", "u_channel", "u_place"),
            *("delta_batch", "delta_route", "delta_channel", "delta_place"),
            *("b_batch", "b_route", "b_group", "b_state", "b_place"),
            *("c_batch", "c_route", "c_group", "c_state", "c_place"),
            *("z_batch", "z_channel", "z_place"),
            *("out_batch", "out_channel", "out_place"),
        )
    ]


class _Data(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("route", "u", "delta", "A", "B", "C", "D", "z", "bias", "out", "last", "checkpoints")
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", "checkpoints", "u", "z", "delta", "A", "D", "bias", "B", "C")),
        *(
            (name, ctypes.c_int64)
            for name in ("delta_batch", "delta_route", "delta_channel", "delta_place", "parts", "places")
        ),
    ]


def _along(
    core: Callable[..., tuple[Tensor, Tensor]],
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    routes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The general form in torch around a plain scan, `core`: output (B, C, L) and last states (B, K, C, D)."""
    (batch, dim, length), count = u.shape, delta.shape[1]
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    steps = delta.to(wide) if bias is None else delta.to(wide) + bias.to(wide)[..., None]
    steps = F.softplus(steps) if softplus else steps
    x = u[:, None].expand(-1, count, -1, -1)
    there = skipped = None
    if routes is not None:
        there, skipped = routes.clamp(min=0).long(), routes < 0
        place = there[None, :, None].expand(batch, -1, dim, -1)
        # A skipped place does not step, so the state stays as it is.
        x, steps = x.gather(3, place), steps.gather(3, place).masked_fill(skipped[:, None], 0)
        place = there[None, :, None, None].expand(batch, -1, B.shape[2], B.shape[3], -1)
        B, C = B.gather(4, place), C.gather(4, place)  # noqa: N806
    out, last = core(
        x.flatten(1, 2), steps.flatten(1, 2), A.flatten(0, 1), B.flatten(1, 2), C.flatten(1, 2),
        None if D is None else D.flatten(),
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
    """The same values with channels, the last axis but one, next to each other in memory."""
    return tensor if tensor.stride(-2) == 1 else tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _prepared(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    routes: Tensor | None,
) -> tuple[_Shape, _Data, list[Tensor | None]]:
    """Sizes, strides and pointers for the kernel; the tensors are returned so that they live as long as the call."""
    wide = [None if t is None else t.float() for t in (u, delta, B, C, z)]
    u, delta, B, C = wide[0], wide[1], wide[2], wide[3]  # type: ignore[assignment]  # noqa: N806
    z = wide[4]
    if routes is not None:
        u, delta = _channels_last(u), _channels_last(delta)
        routes = routes.to(torch.int32).contiguous()
    rest = [None if t is None else t.float().contiguous() for t in (A, D, bias)]
    shape = _Shape(
        u.shape[0],
        u.shape[1],
        A.shape[2],
        B.shape[2],
        delta.shape[1],
        u.shape[2] if routes is None else routes.shape[1],
        int(softplus),
        *u.stride(),
        *delta.stride(),
        *B.stride(),
        *C.stride(),
        *((0, 0, 0) if z is None else z.stride()),
    )
    keep = [routes, u, delta, rest[0], B, C, rest[1], z, rest[2]]
    return shape, _Data(*map(_pointer, keep)), keep


def _like(u: Tensor, routes: Tensor | None) -> Tensor:
    """An output tensor laid out as the kernel likes it for `u`."""
    if routes is not None:
        return u.new_zeros(u.shape[0], u.shape[2], u.shape[1], dtype=torch.float32).transpose(1, 2)
    return torch.empty_like(u, dtype=torch.float32)


def _checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, routes: Tensor | None) -> tuple[int, ...]:  # noqa: N803
    kernels = library()
    assert kernels is not None
    lanes, block = kernels.foveal_lanes(), kernels.foveal_steps()
    steps, groups = u.shape[2] if routes is None else routes.shape[1], B.shape[2]
    blocks = groups * -(-(u.shape[1] // groups) // lanes)
    return u.shape[0], A.shape[0], -(-steps // block), blocks, A.shape[2], lanes


def _native(u: Tensor) -> bool:
    if u.dtype == torch.float64:  # the kernel's exponential is made for float32
        return False
    if library() is None:
        tell_once("selective_scan")
        return False
    return True


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    routes: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not _native(u):
        out, last = _along(selective_scan_eager, u, delta, A, B, C, D, z, bias, softplus, routes)
        return out.to(u.dtype).contiguous(), last.contiguous(), u.new_empty(0)
    shape, data, alive = _prepared(u, delta, A, B, C, D, z, bias, softplus, routes)
    out = _like(u, routes)
    last = u.new_zeros(u.shape[0], *A.shape, dtype=torch.float32)
    checkpoints = u.new_empty(_checkpoint_shape(u, A, B, routes) if keep else 0, dtype=torch.float32)
    if u.numel():
        shape.out_batch, shape.out_channel, shape.out_place = out.stride()
        data.out, data.last, data.checkpoints = _pointer(out), _pointer(last), _pointer(checkpoints)
        library().foveal_scan_forward(ctypes.byref(shape), ctypes.byref(data), torch.get_num_threads())  # type: ignore[union-attr]
    del alive
    return out.to(u.dtype), last, checkpoints


def _backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    routes: Tensor | None,
    checkpoints: Tensor,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z and bias, empty where there is no such input."""
    inputs = (u, delta, A, B, C, D, z, bias)
    none = u.new_empty(0)
    if not u.numel():
        return [none if t is None else torch.zeros_like(t) for t in inputs]
    if not checkpoints.numel():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in inputs]
        with torch.enable_grad():
            out, _ = _along(selective_scan_eager, *leaves, softplus, routes)  # type: ignore[call-arg]
        present = [t for t in leaves if t is not None]
        each = iter(torch.autograd.grad(out, present, grad, allow_unused=True))
        return [none if t is None else _or_zero(next(each), t) for t in leaves]
    shape, data, alive = _prepared(u, delta, A, B, C, D, z, bias, softplus, routes)
    batch, _, length = u.shape
    threads = torch.get_num_threads()
    parts = max(1, min(checkpoints.shape[3], -(-threads // batch)))
    of_u = _like(u, routes)
    of_z = torch.empty_strided(of_u.shape, of_u.stride()) if z is not None else none
    of_delta = torch.zeros_like(alive[2])  # type: ignore[arg-type]
    of_rates = u.new_empty(batch, *A.shape, dtype=torch.float32)
    of_skip, of_bias = (u.new_empty(batch, *A.shape[:2], dtype=torch.float32) for _ in range(2))
    # (parts, B, K, G, L, D)
    rows = (parts, batch, A.shape[0], B.shape[2], length, A.shape[2])
    of_in, of_out = (u.new_zeros(rows, dtype=torch.float32) for _ in range(2))
    # The kernel reads the gradient with the strides of what it writes.
    incoming = torch.empty_strided(of_u.shape, of_u.stride()).copy_(grad)
    shape.out_batch, shape.out_channel, shape.out_place = of_u.stride()
    written = (incoming, checkpoints, of_u, of_z, of_delta, of_rates, of_skip, of_bias, of_in, of_out)
    gradients = _Gradients(*map(_pointer, written), *of_delta.stride(), parts, length)
    call = library().foveal_scan_backward  # type: ignore[union-attr]
    call(ctypes.byref(shape), ctypes.byref(data), ctypes.byref(gradients), threads)
    found = [
        of_u,
        of_delta,
        of_rates.sum(0),
        *(t.sum(0).transpose(-1, -2) for t in (of_in, of_out)),
        of_skip.sum(0),
        of_z,
        of_bias.sum(0),
    ]
    return [none if t is None else g.to(t.dtype) for t, g in zip(inputs, found, strict=True)]


def _or_zero(gradient: Tensor | None, of: Tensor) -> Tensor:
    return torch.zeros_like(of) if gradient is None else gradient.contiguous()


_ARGUMENTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, bool softplus"
_LIBRARY = torch.library.Library("foveal", "FRAGMENT")
_LIBRARY.define(f"selective_scan({_ARGUMENTS}, Tensor? routes, bool keep) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"selective_scan_backward(Tensor grad, {_ARGUMENTS}, Tensor? routes, Tensor checkpoints) -> Tensor[]")
for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("selective_scan", _forward, _key)
    _LIBRARY.impl("selective_scan_backward", _backward, _key)


@torch.library.register_fake("foveal::selective_scan", lib=_LIBRARY)
def _fake_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    routes: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    del delta, C, D, z, bias, softplus
    native = u.dtype != torch.float64 and library() is not None
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    out = _like(u, routes).to(u.dtype) if native else torch.empty_like(u, memory_format=torch.contiguous_format)
    kept = _checkpoint_shape(u, A, B, routes) if keep and native else 0
    return out, u.new_empty(u.shape[0], *A.shape, dtype=wide), u.new_empty(kept, dtype=torch.float32)


@torch.library.register_fake("foveal::selective_scan_backward", lib=_LIBRARY)
def _fake_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    del grad
    return [arguments[0].new_empty(0) if t is None else torch.empty_like(t) for t in arguments[:8]]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, routes, _ = inputs
    ctx.save_for_backward(*tensors, routes, output[2])
    ctx.softplus = softplus
    ctx.mark_non_differentiable(output[1], output[2])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, routes, checkpoints = ctx.saved_tensors
    found = torch.ops.foveal.selective_scan_backward(grad, *tensors, ctx.softplus, routes, checkpoints)
    return (*(None if t is None else g for t, g in zip(tensors, found, strict=True)), None, None, None)


torch.library.register_autograd("foveal::selective_scan", _differentiate, setup_context=_remember, lib=_LIBRARY)


@register_flop_formula(torch.ops.foveal.selective_scan)
def _flops(u: Any, delta: Any, A: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:  # noqa: N803
    """9 multiply-adds a state and step and one for the skip, as the tables of VMamba's papers count."""
    del out_shape
    batch, _, length = u
    _, dim, states = A
    return 2 * batch * delta[1] * length * dim * (9 * states + 1)


def selective_scan_along(
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
    """The registered operator, in the general form.

    Args:
        u: (B, C, L).
        delta: (B, K, C, L), in the order of u, not of the routes.
        A: (K, C, D).
        B: (B, K, G, D, L).
        C: (B, K, G, D, L).
        D: (K, C).
        bias: (K, C).
        softplus: whether delta goes through softplus.
        routes: (K, S), places in the order they are visited, -1 for none; None takes them in order.
        z: gate, (B, C, L); only without routes.

    Returns:
        Output, (B, C, L), summed over the routes; last states, (B, K, C, D), not differentiated.
    """
    given = (u, delta, A, B, C, D, z, bias)
    if torch.onnx.is_in_onnx_export():
        return _along(selective_scan_symbolic, *given, softplus, routes)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    out, last, _ = torch.ops.foveal.selective_scan(*given, softplus, routes, keep)
    return out, last


def selective_scan_native(
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
    """The plain scan.

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
    one = [None if t is None else t[None] for t in (D, delta_bias)]
    out, last = selective_scan_along(
        u, delta[:, None], A[None], B[:, None], C[:, None], one[0], one[1], delta_softplus, None, z
    )
    return out, last[:, 0]
