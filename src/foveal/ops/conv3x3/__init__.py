"""Leaky ReLU followed by a 3×3 convolution, for training on CPUs: one function over torch and a compiled kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, reasons
from foveal.ops.conv3x3.native import conv3x3_native, why_not
from foveal.ops.conv3x3.reference import conv3x3_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["conv3x3", "explain"]

BACKENDS = (
    Backend("native", conv3x3_native, why_not),
    Backend("eager", conv3x3_reference, lambda _: None),  # torch's own convolution serves as both
    Backend("reference", conv3x3_reference, lambda _: None),
)


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, slope: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """3×3 convolution of leaky(x) with zero padding; the output is as large as x.

        leaky(x) = x for x > 0, slope · x below
        y = weight * leaky(x) + bias

    The activation precedes the convolution, so that a chain of them saves only one tensor per layer for the backward
    pass.

    Args:
        x: input, (B, C, H, W).
        weight: convolution kernel, (C', C, 3, 3).
        bias: bias, (C',), or None.
        slope: slope of the activation for negative values, shaped () or (1,); None for no activation.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Output, (B, C', H, W).

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown or the tensors are on two devices.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.conv3x3 import conv3x3
        >>> conv3x3(torch.tensor([[[[-10.0, 1.0]]]]), torch.ones(1, 1, 3, 3), slope=torch.tensor(0.1))
        tensor([[[[0., 0.]]]])
    """
    if x.ndim != 4:
        raise ShapeError(f"x must be (batch, channels, height, width), got {tuple(x.shape)}")
    check_alike({"x": x, "weight": weight, "bias": bias, "slope": slope})
    check_shape("weight", weight, (weight.shape[0], x.shape[1], 3, 3), "3×3 over the channels of x")
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],), "one value for each row of weight")
    if slope is not None and slope.numel() != 1:
        raise ShapeError(f"slope must be one number, got {tuple(slope.shape)}")
    return choose(BACKENDS, backend, x).run(x, weight, bias, slope)


def explain(x: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        x: input of the call; None stands for a float32 tensor of 32 channels on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 32, 1, 1) if x is None else x)
