"""Im2win: convolution over windows in order, which overlap in memory instead of being unfolded.

*Source*: S. Lu et al., "Im2win: An Efficient Convolution Paradigm on GPU", Euro-Par 2023 (arXiv:2306.14316), read in
abstract; before it, "Im2win: Memory Efficient Convolution on SIMD Architectures", HPEC 2022. The rest by the authors'
code, https://github.com/seth-lu/Im2win.

im2col copies each window, kh·kw values for each output, and multiplies matrices. Im2win copies the kh rows under a row
of outputs once, column by column. Windows are contiguous pieces of that buffer, and neighbours share columns:

    z[n, c, i, x·kh + u] = x[n, c, i·s + u, x];   y[n, o, i, j] = Σ_c Σ_t z[n, c, i, j·s·kh + t] f[o, c, t]

with z (B, C, H', kh·W) for x (B, C, H, W), and f the weight column by column. Equations one by one and the counts of
elements are in `reference.py`; the buffer is smaller than im2col's, B·C·kh·kw·H'·W', wherever kw·W' > W.

*Differs from the paper*: padding and gradients are added. The compiled kernel has channels innermost and holds the
windows of the rows that a thread works on, never the whole buffer. Where the stride is at least the kernel's side, the
authors' code keeps the input as it is; here the buffer is made. A GPU kernel is open.
*Provenance*: written from the paper's abstract and the authors' code, which was read only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from foveal.cases import Operator
from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.im2win.eager import im2win_conv2d_eager
from foveal.ops.im2win.native import im2win_conv2d_native, missing, why_not
from foveal.ops.im2win.reference import im2col_elements, im2win_conv2d_reference, im2win_elements
from foveal.ops.native import tell_once
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "im2col_elements", "im2win_conv2d", "im2win_elements"]

BACKENDS = (
    Backend("native", im2win_conv2d_native, why_not),
    Backend("eager", im2win_conv2d_eager, lambda _: None),
    Backend("reference", im2win_conv2d_reference, lambda _: None),
)


def im2win_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0, backend: str = "auto"
) -> Tensor:
    """Convolution, equal to `torch.nn.functional.conv2d`.

    Args:
        x: input, (B, C, H, W).
        weight: weight, (O, C, kh, kw).
        bias: bias, (O,), or None.
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Output, (B, O, H', W').

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if a setting is out of range, the backend unknown or the tensors are on two devices.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.im2win import im2win_conv2d
        >>> im2win_conv2d(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.ones(1, 1, 1, 2))
        tensor([[[[3., 5.]]]])
    """
    if x.ndim != 4 or weight.ndim != 4:
        raise ShapeError(
            f"x must be (batch, channels, height, width) and weight (out, channels, height, width), got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if stride < 1 or padding < 0:
        raise ValueError(f"stride must be at least 1 and padding at least 0, got {stride} and {padding}")
    check_alike({"x": x, "weight": weight, "bias": bias})
    kernel = tuple(weight.shape[2:])
    check_shape("weight", weight, (weight.shape[0], x.shape[1], *kernel), "a kernel over the channels of x")
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],), "one value for each output channel")
    if min(n + 2 * padding - k for n, k in zip(x.shape[2:], kernel, strict=True)) < 0:
        raise ShapeError(f"x must be at least {kernel} with its padding of {padding}, got {tuple(x.shape)}")
    chosen = choose(BACKENDS, backend, x)
    if backend == "auto" and missing(x):
        tell_once("im2win_conv2d")
    with in_full_precision(x):
        return chosen.run(x, weight, bias, stride, padding)


def explain(x: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        x: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1, 1) if x is None else x)


def _case(seed: int, *, stride: int, padding: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 3, 7, 9), (5, 3, 3, 2), (5,)))
    return {"x": x, "weight": weight, "bias": bias, "stride": stride, "padding": padding}


METHOD = Method(
    id=311,
    name="Im2win",
    kind="operator",
    summary="Convolution over a buffer in which windows overlap, instead of im2col's copies of them.",
    cases={
        name: Operator(
            partial(im2win_conv2d, backend="eager"),
            partial(im2win_conv2d, backend="reference"),
            partial(_case, stride=stride, padding=padding),
        )
        for name, stride, padding in (("plain", 1, 0), ("stride and padding", 2, 1))
    },
    paper=Paper("Im2win: An Efficient Convolution Paradigm on GPU", "S. Lu et al.", 2023, "arXiv:2306.14316"),
)
