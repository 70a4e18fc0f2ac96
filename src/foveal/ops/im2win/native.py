"""Im2win with the compiled kernel, registered with torch for autograd and `torch.compile`.

kernels/cpp/im2win.cpp holds the windows of a few rows of outputs at a time, channels innermost. Gradients are those of
torch's own convolution. Exported graphs use torch's operators.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.native import library
from foveal.ops.since import lacks

__all__ = ["im2win_conv2d_native", "missing", "why_not"]

PANEL = 16  # output channels whose weights lie together


def why_not(x: Tensor) -> str | None:
    """Why the kernel cannot run.

    Args:
        x: first input of the call.

    Returns:
        None if it can, else the reason and what to do.
    """
    return _unfit(x) or lacks("foveal_im2win")


def missing(x: Tensor) -> bool:
    """Whether the kernel could run this call if it were installed.

    Args:
        x: first input of the call.

    Returns:
        True if nothing else prevents it.
    """
    return _unfit(x) is None and lacks("foveal_im2win") is not None


def _unfit(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it is for tensors on the CPU, and x is on {x.device}"
    if x.dtype != torch.float32:
        return f"it computes in float32, and x is {str(x.dtype).removeprefix('torch.')}"
    if torch.compiler.is_exporting():
        return "an exported graph must hold torch's own operators"
    return None


def _sides(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    down, across = ((n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    return down, across


@torch.library.custom_op("foveal::im2win_conv2d", mutates_args=(), device_types="cpu")
def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    from foveal_kernels.calls import Im2win

    found = library()
    assert found is not None  # guaranteed by `why_not`
    x = x.contiguous(memory_format=torch.channels_last)
    (batch, channels, height, width), (out, _, *kernel) = x.shape, weight.shape
    y = torch.empty((batch, out, *_sides(x, weight, stride, padding)), memory_format=torch.channels_last)
    spare = -out % PANEL
    # (panels, kw, kh, C, 16)
    packed = F.pad(weight.permute(3, 2, 1, 0), (0, spare)).unflatten(3, (-1, PANEL)).permute(3, 0, 1, 2, 4).contiguous()
    bias = F.pad(bias, (0, spare)).contiguous()
    pointers = (t.data_ptr() for t in (x, packed, bias, y))
    call = Im2win(batch, height, width, channels, out, *kernel, stride, padding, *pointers)
    if found.foveal_im2win(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError("out of memory in an im2win convolution; use a smaller batch")
    return y


@_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:  # noqa: ARG001
    shape = (x.shape[0], weight.shape[0], *_sides(x, weight, stride, padding))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[3:]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), (stride, padding) = ctx.saved_tensors, ctx.settings
    sides = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1
    wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
    found = torch.ops.aten.convolution_backward(gradient, x, weight, [weight.shape[0]], *sides, wanted)
    return (*(g if needed else None for g, needed in zip(found, wanted, strict=True)), None, None)


_conv2d.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.foveal.im2win_conv2d)
def _flops(_: tuple[int, ...], weight: tuple[int, ...], *__: Any, out_shape: tuple[int, ...], **___: Any) -> int:
    return 2 * weight[1] * weight[2] * weight[3] * out_shape[0] * out_shape[1] * out_shape[2] * out_shape[3]


def im2win_conv2d_native(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """`im2win_conv2d_reference` with the compiled kernel.

    Args:
        x: input, (B, C, H, W), float32.
        weight: weight, (O, C, kh, kw).
        bias: bias, (O,), or None.
        stride: s.
        padding: p.

    Returns:
        Output, (B, O, H', W'), channels last in memory.
    """
    return _conv2d(x, weight, weight.new_zeros(weight.shape[0]) if bias is None else bias, stride, padding)
