"""A convolution that sees only pixels above and to the left, and its inverse by sweeps over anti-diagonals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.ops.backends import Backend, ShapeError, check_alike, choose, in_full_precision, reasons
from foveal.ops.inverse_conv.eager import inverse_conv_eager
from foveal.ops.inverse_conv.reference import inverse_conv_reference, masked_kernel

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "inverse_conv", "masked_conv", "masked_kernel"]

BACKENDS = (
    Backend("eager", inverse_conv_eager, lambda _: None),
    Backend("reference", inverse_conv_reference, lambda _: None),
)


def _check(name: str, tensor: Tensor, weight: Tensor, groups: int) -> None:
    if tensor.ndim != 4:
        raise ShapeError(f"{name} must be (batch, channels, height, width), got {tuple(tensor.shape)}")
    check_alike({name: tensor, "weight": weight})
    channels = tensor.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of {name}, got {groups}")
    wanted = (channels, channels // groups)
    if weight.ndim != 4 or tuple(weight.shape[:2]) != wanted or not weight.shape[2] * weight.shape[3]:
        raise ShapeError(
            f"weight must be {wanted} and rows and columns of taps, as for a convolution that keeps the channels of "
            f"{name}, got {tuple(weight.shape)}"
        )


def masked_conv(x: Tensor, weight: Tensor, *, groups: int = 1) -> Tensor:
    """Convolution padded above and on the left only, with determinant 1.

        y_ij = Σ_ab W_ab x_(i-a)(j-b)

    The last tap, W_00, counts as unit lower triangular: only what is below its diagonal is read.

    Args:
        x: input, (B, C, H, W).
        weight: kernel, (C, C/groups, kh, kw).
        groups: number of groups of channels.

    Returns:
        y, (B, C, H, W).

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the groups do not divide the channels, or the tensors are on two devices.
    """
    _check("x", x, weight, groups)
    padded = F.pad(x, (weight.shape[3] - 1, 0, weight.shape[2] - 1, 0))
    return torch.conv2d(padded, masked_kernel(weight, groups=groups), groups=groups)


def inverse_conv(y: Tensor, weight: Tensor, *, groups: int = 1, backend: str = "auto") -> Tensor:
    """Input of `masked_conv` from its output, in H + W - 1 sweeps, each over all pixels of an anti-diagonal.

    Gradients take as many sweeps. Pixels that are far from zero padding may grow with each sweep: the inverse of a
    kernel with large taps is large.

    Args:
        y: output of the convolution, (B, C, H, W).
        weight: kernel, (C, C/groups, kh, kw).
        groups: number of groups of channels.
        backend: "auto", "eager" or "reference".

    Returns:
        x, (B, C, H, W), in the dtype of `y`.

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown, the groups do not divide the channels, or the tensors are on two devices.

    Example:
        >>> import torch
        >>> from foveal.ops.inverse_conv import inverse_conv, masked_conv
        >>> x, weight = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.full((1, 1, 2, 2), 0.5)
        >>> inverse_conv(masked_conv(x, weight), weight)
        tensor([[[[1., 2.],
                  [3., 4.]]]])
    """
    _check("y", y, weight, groups)
    chosen = choose(BACKENDS, backend, y)
    with in_full_precision(y):
        x: Tensor = chosen.run(y, weight, groups)
    return x


def explain(y: Tensor | None = None) -> dict[str, str]:
    """Which paths of `inverse_conv` can run, and why the others cannot.

    Args:
        y: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1, 1) if y is None else y)
