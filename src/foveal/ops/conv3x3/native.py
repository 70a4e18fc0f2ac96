"""The 3×3 convolution with the compiled kernel, registered with torch for autograd and `torch.compile`.

kernels/cpp/conv3x3.cpp computes 16 pixels with 36 products (Winograd) instead of 144, in the forward pass and for both
gradients, and computes the activation's gradient while the pixels are in cache. Exported graphs use torch's operators.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.backends import differentiable_gradients
from foveal.ops.conv3x3.reference import conv3x3_reference
from foveal.ops.native import library
from foveal.ops.native import why_not as not_installed

__all__ = ["conv3x3_native", "why_not"]

WHOLE = 16  # the number of channels must be a multiple of it


def why_not(x: Tensor) -> str | None:
    """Why the kernel cannot run.

    Args:
        x: input of the call.

    Returns:
        None if it can, else the reason and what to do.
    """
    if x.device.type != "cpu":
        return f"it is for tensors on the CPU, and x is on {x.device}"
    if x.dtype != torch.float32:
        return f"it computes in float32, and x is {str(x.dtype).removeprefix('torch.')}"
    if x.shape[1] % WHOLE:
        return f"it takes multiples of {WHOLE} channels, and x has {x.shape[1]}"
    if torch.compiler.is_exporting():
        return "an exported graph must hold torch's own operators"
    return not_installed()


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _run(name: str, call: ctypes.Structure) -> None:
    found = library()
    assert found is not None  # guaranteed by `why_not`
    if getattr(found, name)(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError("out of memory in a 3×3 convolution; use a smaller batch")


def _convolve(
    x: Tensor, weight: Tensor, slope: Tensor | None, bias: Tensor | None, gate: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Convolve leaky(x) with `weight` (3, 3, C, C').

    With a gate, the result is multiplied by the slope of leaky(gate), and the gradient of the slope is returned second.
    """
    from foveal_kernels.calls import Convolution

    (batch, _, height, width), (channels, made) = x.shape, weight.shape[2:]
    y = torch.empty((batch, made, height, width), memory_format=torch.channels_last)
    gradient = None if gate is None else x.new_empty(())
    before, at_gate = (slope, None) if gate is None else (None, slope)
    pointers = (x, weight, before, bias, y, gate, at_gate, gradient)
    sizes = (batch, height, width, channels, made)
    _run("foveal_conv3x3", Convolution(*sizes, *(None if t is None else t.data_ptr() for t in pointers)))
    return y, gradient


@torch.library.custom_op("foveal::conv3x3", mutates_args=(), device_types="cpu")
def _conv3x3(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
    packed = weight.permute(2, 3, 1, 0).contiguous()
    return _convolve(_last(x), packed, slope, bias.contiguous())[0]


@_conv3x3.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor) -> Tensor:  # noqa: ARG001
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("foveal::conv3x3_backward", mutates_args=(), device_types="cpu")
def _backward(gradient: Tensor, x: Tensor, weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from foveal_kernels.calls import ConvolutionGradients

    gradient, x = _last(gradient), _last(x)
    turned = weight.flip(2, 3).permute(2, 3, 0, 1).contiguous()
    of_x, of_slope = _convolve(gradient, turned, slope, None, gate=x)
    assert of_slope is not None
    (batch, _, height, width), (made, channels) = x.shape, weight.shape[:2]
    of_weight, of_bias = x.new_empty(3, 3, channels, made), x.new_empty(made)
    pointers = (t.data_ptr() for t in (x, slope, gradient, of_weight, of_bias))
    _run("foveal_conv3x3_weights", ConvolutionGradients(batch, height, width, channels, made, *pointers))
    return of_x, of_weight.permute(3, 2, 0, 1).contiguous(), of_bias, of_slope.reshape(slope.shape)


@_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return made, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0]), torch.empty_like(slope)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, weight, _, slope = inputs
    ctx.save_for_backward(x, weight, slope)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # double backward, which the kernel does not support

        def convolve(x: Tensor, weight: Tensor, slope: Tensor) -> Tensor:
            return conv3x3_reference(x, weight, None, slope)

        x, weight, slope = differentiable_gradients(convolve, ctx.saved_tensors, [gradient])
        return x, weight, gradient.sum((0, 2, 3)), slope
    of_x, of_weight, of_bias, of_slope = _backward(gradient, *ctx.saved_tensors)
    return of_x, of_weight, of_bias, of_slope


_conv3x3.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.foveal.conv3x3)
def _flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * 9 * x[0] * x[2] * x[3] * weight[0] * weight[1]


@register_flop_formula(torch.ops.foveal.conv3x3_backward)
def _backward_flops(_: tuple[int, ...], x: tuple[int, ...], weight: tuple[int, ...], *__: Any, **___: Any) -> int:
    return 2 * _flops(x, weight)


def conv3x3_native(x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None) -> Tensor:
    """`conv3x3_reference` with the compiled kernel; output channels are padded to a multiple and cropped again.

    Args:
        x: input, (B, C, H, W), float32.
        weight: convolution kernel, (C', C, 3, 3).
        bias: bias, (C',).
        slope: slope of the activation for negative values, one number.

    Returns:
        Output, (B, C', H, W).
    """
    made = weight.shape[0]
    bias = weight.new_zeros(made) if bias is None else bias
    slope = x.new_ones(()) if slope is None else slope
    if spare := -made % WHOLE:
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, spare)), F.pad(bias, (0, spare))
    y = _conv3x3(x, weight, bias, slope)
    return y[:, :made] if spare else y
