"""Co-designed DCN: deformable convolution, and the restrictions of its offsets that let hardware buffer a few rows.

*Source*: Q. Huang et al., "Algorithm-hardware Co-design for Deformable Convolution", 2020 (arXiv:2002.08357), read in
abstract; of the same authors, "CoDeNet", FPGA 2021 (arXiv:2006.08357), whose code is
https://github.com/DequanWang/CoDeNet. The convolution itself: J. Dai et al., 2017, and X. Zhu et al., 2019, its mask.

A deformable convolution reads each tap k at an offset Δ_k(p) that depends on the picture, bilinear between pixels:

    y(p) = Σ_k w_k · x(p·s − pad + k·d + Δ_k(p)) · m_k(p)

Taps may read anywhere, so that the whole picture must be at hand. Four restrictions, each an argument:

    depthwise     groups = C                     C·K multiply-adds for a pixel, not O·C·K
    reach = r     Δ clamped to [−r, r]           (k − 1)·d + 1 + 2r rows of the input at once, not H
    whole         Δ rounded                      one read for a tap, not four; no interpolation
    square        Δ_k = t·(k − centre), t ≥ 0    one number for a place, not 2K

with x (B, C, H, W), offset (B, 2·G·K, H', W') or, square, (B, G, H', W'), and weight (O, C/groups, kh, kw). Equations
are in `reference.py`; `buffers.py` counts rows, bytes and reads.

*Differs from the paper*: rounded offsets are learnt by the gradients of bilinear reads, as the abstract does not say
how they are; CoDeNet's code does not round. Quantisation is `foveal.shrink.quantize`'s work. There is no hardware.
*Provenance*: written from the abstract and the authors' code, which was read only. Bounded and square offsets are
those of its `DeformConvBound` and `DeformConvSquare`, for kernels of 3×3.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from foveal.cases import Operator
from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.deform_conv.buffers import Buffers, buffers, most_rows
from foveal.ops.deform_conv.eager import deform_conv2d_eager
from foveal.ops.deform_conv.reference import deform_conv2d_reference, restricted
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Buffers", "buffers", "deform_conv2d", "explain", "most_rows", "restricted"]

BACKENDS = (
    Backend("eager", deform_conv2d_eager, lambda _: None),
    Backend("reference", deform_conv2d_reference, lambda _: None),
)


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    square: bool = False,
    reach: int | None = None,
    whole: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Deformable convolution; without restrictions, `torchvision.ops.deform_conv2d`.

    Args:
        x: input, (B, C, H, W).
        offset: offsets, (B, 2·G·K, H', W'), in pixels, vertical before horizontal for each of K = kh·kw taps; with
            `square` spreads, (B, G, H', W'). Each of G groups of channels has its own.
        weight: weight, (O, C/groups, kh, kw); its second axis says how many groups there are.
        bias: bias, (O,), or None.
        mask: factors on what is read, (B, G·K, H', W'), or None.
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.
        dilation: distance of the taps, in pixels.
        square: whether taps only move apart, all at one rate.
        reach: furthest that a tap may move along an axis, in pixels; None for any distance.
        whole: whether offsets are rounded to pixels; gradients are those of bilinear reads.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Output, (B, O, H', W').

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if a setting is out of range, the backend unknown or the tensors are on two devices.

    Example:
        >>> import torch
        >>> from foveal.ops.deform_conv import deform_conv2d
        >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
        >>> right = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
        >>> deform_conv2d(x, right, torch.ones(1, 1, 1, 1))
        tensor([[[[1.5000, 3.0000, 2.0000]]]])
    """
    if x.ndim != 4 or weight.ndim != 4 or offset.ndim != 4:
        raise ShapeError(
            f"x, offset and weight must have four axes, got {tuple(x.shape)}, {tuple(offset.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if min(stride, dilation) < 1 or padding < 0 or (reach is not None and reach < 0):
        raise ValueError(
            f"stride and dilation must be at least 1 and padding and reach at least 0, got {stride}, {dilation}, "
            f"{padding} and {reach}"
        )
    check_alike({"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask})
    (batch, channels, *size), (out, inner, *kernel) = x.shape, weight.shape
    groups = channels // max(inner, 1)
    if not inner or groups * inner != channels or out % groups:
        raise ShapeError(
            f"weight must be (O, C/groups, kh, kw) with groups that divide the {channels} channels of x and O, got "
            f"{tuple(weight.shape)}"
        )
    down, across = ((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True))
    each = 1 if square else 2 * kernel[0] * kernel[1]
    share = offset.shape[1] // each
    if not share or channels % share:
        raise ShapeError(f"offset must hold {each} channels for each of G groups that divide C, got {offset.shape[1]}")
    check_shape("offset", offset, (batch, share * each, down, across), "the size of the output")
    if mask is not None:
        check_shape("mask", mask, (batch, share * kernel[0] * kernel[1], down, across), "a factor for each tap")
    if bias is not None:
        check_shape("bias", bias, (out,), "one value for each output channel")
    chosen = choose(BACKENDS, backend, x)
    with in_full_precision(x):
        offset = restricted(offset, (kernel[0], kernel[1]), square=square, reach=reach)
        return chosen.run(x, offset, weight, bias, mask, stride, padding, dilation, whole=whole)


def explain(x: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        x: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1, 1) if x is None else x)


def _case(seed: int, *, square: bool = False, groups: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 4, 6, 7), (2, 2 if square else 36, 3, 4), (4, 4 // groups, 3, 3), (4,)
    x, offset, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return {"x": x, "offset": 2 * offset, "weight": weight, "bias": bias, "stride": 2, "padding": 1}


OPTIONS: dict[str, dict[str, Any]] = {
    "free": {},
    "depthwise": {},
    "reach": {"reach": 1},
    "whole": {"whole": True},
    "square": {"square": True, "reach": 2},
}

METHOD = Method(
    id=37,
    name="Co-designed DCN",
    kind="operator",
    summary="Deformable convolution whose offsets are kept short, whole or square, so that few rows are buffered.",
    cases={
        name: Operator(
            partial(deform_conv2d, **options),
            partial(deform_conv2d, backend="reference", **options),
            partial(_case, square=name == "square", groups=4 if name == "depthwise" else 1),
        )
        for name, options in OPTIONS.items()
    },
    paper=Paper("Algorithm-hardware Co-design for Deformable Convolution", "Q. Huang et al.", 2020, "arXiv:2002.08357"),
)
