"""Products and convolutions of signs with the compiled kernel, registered with torch for autograd and `torch.compile`.

kernels/cpp/xnor.cpp packs the signs to bits and counts the bits that differ, 64 in a word. Gradients are products of
real numbers and computed in torch. Exported graphs use torch's operators.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.native import library
from foveal.ops.since import lacks
from foveal.ops.xnor.reference import WORD, sign, unpack_rows

__all__ = ["missing", "why_not", "xnor_conv2d_native", "xnor_matmul_native"]


def why_not(x: Tensor) -> str | None:
    """Why the kernel cannot run.

    Args:
        x: first input of the call.

    Returns:
        None if it can, else the reason and what to do.
    """
    return _unfit(x) or lacks("foveal_signs")


def missing(x: Tensor) -> bool:
    """Whether the kernel could run this call if it were installed.

    Args:
        x: first input of the call.

    Returns:
        True if nothing else prevents it.
    """
    return _unfit(x) is None and lacks("foveal_signs") is not None


def _unfit(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it is for tensors on the CPU, and x is on {x.device}"
    if x.dtype != torch.float32:
        return f"it reads float32, and x is {str(x.dtype).removeprefix('torch.')}"
    if torch.compiler.is_exporting():
        return "an exported graph must hold torch's own operators"
    return None


def _run(name: str, call: ctypes.Structure) -> None:
    found = library()
    assert found is not None  # guaranteed by `why_not`
    if getattr(found, name)(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError("out of memory in a product of signs; use a smaller batch")


def _words(rows: Tensor) -> Tensor:
    """`pack_rows` by the kernel; words stay as they are."""
    if rows.dtype == torch.int64:
        return rows.contiguous()
    from foveal_kernels.calls import Signs

    rows = rows.float().contiguous()
    count = rows.shape[-1]
    words = rows.new_empty((*rows.shape[:-1], -(-count // WORD)), dtype=torch.int64)
    _run("foveal_signs", Signs(rows.numel() // max(count, 1), count, rows.data_ptr(), words.data_ptr()))
    return words


@torch.library.custom_op("foveal::xnor_matmul", mutates_args=(), device_types="cpu")
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    from foveal_kernels.calls import XnorMatmul

    a, words = a.contiguous(), _words(b)
    (batch, rows, inner), columns = a.shape, b.shape[1]
    y = a.new_empty(batch, rows, columns)
    pointers = (t.data_ptr() for t in (a, words, y))
    _run("foveal_xnor_matmul", XnorMatmul(batch, rows, columns, inner, *pointers))
    return y


@_matmul.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[1])


def _kernel(weight: Tensor) -> tuple[int, int]:
    """Height and width of a convolution's kernel, (O, C, kh, kw) or packed, (O, kh, kw, words)."""
    at = 1 if weight.dtype == torch.int64 else 2
    return weight.shape[at], weight.shape[at + 1]


@torch.library.custom_op("foveal::xnor_conv2d", mutates_args=(), device_types="cpu")
def _conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    from foveal_kernels.calls import XnorConv

    words = _words(weight if weight.dtype == torch.int64 else weight.permute(0, 2, 3, 1))
    x = x.contiguous(memory_format=torch.channels_last)
    (batch, channels, height, width), out, kernel = x.shape, weight.shape[0], _kernel(weight)
    down, across = ((n + 2 * padding - k) // stride + 1 for n, k in zip((height, width), kernel, strict=True))
    y = torch.empty((batch, out, down, across), memory_format=torch.channels_last)
    pointers = (t.data_ptr() for t in (x, words, y))
    _run("foveal_xnor_conv", XnorConv(batch, height, width, channels, out, *kernel, stride, padding, *pointers))
    return y


@_conv2d.register_fake
def _(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    down, across = ((n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[2:], _kernel(weight), strict=True))
    shape = (x.shape[0], weight.shape[0], down, across)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _near(x: Tensor) -> Tensor:
    """Where the gradient of `sign` is 1."""
    return x.detach().abs() <= 1


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[2:]


def _matmul_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    signs = unpack_rows(b, a.shape[-1], a.dtype) if b.dtype == torch.int64 else sign(b)
    of_a = (gradient @ signs) * _near(a) if ctx.needs_input_grad[0] else None
    of_b = (gradient.mT @ sign(a)) * _near(b) if ctx.needs_input_grad[1] else None
    return of_a, of_b


def _conv2d_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), (stride, padding) = ctx.saved_tensors, ctx.settings
    packed = weight.dtype == torch.int64
    signs = unpack_rows(weight, x.shape[1], x.dtype).permute(0, 3, 1, 2) if packed else sign(weight)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        sign(x),
        signs,
        None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        1,
        [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
    )
    of_x = of_x * _near(x) if ctx.needs_input_grad[0] else None
    return of_x, of_weight * _near(weight) if ctx.needs_input_grad[1] else None, None, None


_matmul.register_autograd(_matmul_gradients, setup_context=_keep)
_conv2d.register_autograd(_conv2d_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.foveal.xnor_matmul)
def _matmul_flops(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * a[2] * b[1]


@register_flop_formula(torch.ops.foveal.xnor_conv2d)
def _conv2d_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    taps = weight[2] * weight[3] if weight[1] == x[1] else weight[1] * weight[2]  # packed: (O, kh, kw, words)
    return 2 * taps * x[1] * out_shape[0] * out_shape[1] * out_shape[2] * out_shape[3]


def xnor_matmul_native(a: Tensor, b: Tensor) -> Tensor:
    """`xnor_matmul_reference` with the compiled kernel.

    Args:
        a: values, (…, M, K), float32.
        b: values, (…, N, K), or their packed signs, (…, N, ⌈K/64⌉) int64.

    Returns:
        Sums, (…, M, N).
    """
    if b.ndim == 2:
        return _matmul(a.reshape(1, -1, a.shape[-1]), b[None]).view(*a.shape[:-1], b.shape[0])
    return _matmul(a.flatten(0, -3), b.flatten(0, -3)).view(*a.shape[:-1], b.shape[-2])


def xnor_conv2d_native(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`xnor_conv2d_reference` with the compiled kernel.

    Args:
        x: picture, (B, C, H, W), float32.
        weight: weight, (O, C, kh, kw), or its packed signs, (O, kh, kw, ⌈C/64⌉) int64.
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.

    Returns:
        Sums, (B, O, H', W'), channels last in memory.
    """
    return _conv2d(x, weight, stride, padding)
