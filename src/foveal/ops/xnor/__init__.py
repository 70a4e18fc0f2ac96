"""Products and convolutions of signs, for networks of binary weights and activations: 64 products per instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.native import tell_once
from foveal.ops.xnor.eager import xnor_conv2d_eager, xnor_matmul_eager
from foveal.ops.xnor.native import missing, why_not, xnor_conv2d_native, xnor_matmul_native
from foveal.ops.xnor.reference import (
    WORD,
    pack_rows,
    sign,
    unpack_rows,
    xnor_conv2d_reference,
    xnor_matmul_reference,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "pack_signs", "sign", "unpack_signs", "xnor_conv2d", "xnor_matmul"]


MATMUL = (
    Backend("native", xnor_matmul_native, why_not),
    Backend("eager", xnor_matmul_eager, lambda _: None),
    Backend("reference", xnor_matmul_reference, lambda _: None),
)
CONV2D = (
    Backend("native", xnor_conv2d_native, why_not),
    Backend("eager", xnor_conv2d_eager, lambda _: None),
    Backend("reference", xnor_conv2d_reference, lambda _: None),
)


def pack_signs(weight: Tensor) -> Tensor:
    """Pack the signs of weights, 64 in a word; other sizes of the last axis are filled up.

    Args:
        weight: weight of a linear layer, (…, N, K), or of a convolution, (O, C, kh, kw), whose channels are packed.

    Returns:
        Words, int64: (…, N, ⌈K/64⌉), or (O, kh, kw, ⌈C/64⌉).

    Example:
        >>> import torch
        >>> from foveal.ops.xnor import pack_signs
        >>> pack_signs(torch.tensor([[1.0, -1.0, 0.0]]))
        tensor([[5]])
    """
    return pack_rows(weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight)


def unpack_signs(words: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack_signs`.

    Args:
        words: packed weight, int64.
        count: number of inputs or input channels, K or C.
        dtype: dtype of the result.

    Returns:
        1 or −1, (…, N, K), or (O, C, kh, kw).
    """
    signs = unpack_rows(words, count, dtype)
    return signs.permute(0, 3, 1, 2) if words.ndim == 4 else signs


def xnor_matmul(a: Tensor, b: Tensor, *, backend: str = "auto") -> Tensor:
    """Product of the signs of two matrices, both given by rows: sign(a) @ sign(b).mT, exact.

    The sign of 0 is 1; gradients are straight through where values lie in [−1, 1].

    Args:
        a: values, (…, M, K).
        b: values, (…, N, K), or packed signs, (…, N, ⌈K/64⌉) int64; (N, …) serves all matrices of `a`.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Sums of K signs, (…, M, N).

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown or the tensors are on two devices.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.xnor import xnor_matmul
        >>> xnor_matmul(torch.tensor([[0.2, -0.5, 3.0]]), torch.tensor([[-1.0, -1.0, 1.0]]))
        tensor([[1.]])
    """
    packed = b.dtype == torch.int64
    if a.ndim < 2 or b.ndim not in {2, a.ndim}:
        raise ShapeError(f"a and b must be (…, M, K) and (…, N, K), got {tuple(a.shape)} and {tuple(b.shape)}")
    check_alike({"a": a, "b": None if packed else b})
    inner = -(-a.shape[-1] // WORD) if packed else a.shape[-1]
    before = () if b.ndim == 2 else tuple(a.shape[:-2])
    check_shape("b", b, (*before, b.shape[-2], inner), "rows as long as those of a")
    chosen = choose(MATMUL, backend, a)
    if chosen.name != "native" and packed:
        b = unpack_rows(b, a.shape[-1], a.dtype)
    if backend == "auto" and missing(a):
        tell_once("xnor_matmul")
    with in_full_precision(a):
        return chosen.run(a, b)


def xnor_conv2d(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0, backend: str = "auto") -> Tensor:
    """Convolution of the signs of a picture with the signs of a weight, zero outside the picture, exact.

    The sign of 0 is 1; gradients are straight through where values lie in [−1, 1].

    Args:
        x: picture, (B, C, H, W).
        weight: weight, (O, C, kh, kw), or its packed signs, (O, kh, kw, ⌈C/64⌉) int64.
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Sums of signs, (B, O, H', W').

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if a setting is out of range, the backend unknown or the tensors are on two devices.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.xnor import xnor_conv2d
        >>> xnor_conv2d(torch.tensor([[[[0.2, -0.5]]]]), torch.ones(1, 1, 3, 3), padding=1)
        tensor([[[[0., 0.]]]])
    """
    if x.ndim != 4 or weight.ndim != 4:
        raise ShapeError(
            f"x must be (batch, channels, height, width) and weight (out, channels, height, width) or packed, got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if stride < 1 or padding < 0:
        raise ValueError(f"stride must be at least 1 and padding at least 0, got {stride} and {padding}")
    packed = weight.dtype == torch.int64
    check_alike({"x": x, "weight": None if packed else weight})
    out, channels, at = weight.shape[0], x.shape[1], 1 if packed else 2
    kernel = (weight.shape[at], weight.shape[at + 1])
    wanted = (out, *kernel, -(-channels // WORD)) if packed else (out, channels, *kernel)
    check_shape("weight", weight, wanted, "a kernel over the channels of x")
    if min(n + 2 * padding - k for n, k in zip(x.shape[2:], kernel, strict=True)) < 0:
        raise ShapeError(f"x must be at least {kernel} with its padding of {padding}, got {tuple(x.shape)}")
    chosen = choose(CONV2D, backend, x)
    if chosen.name != "native" and packed:
        weight = unpack_signs(weight, channels, x.dtype)
    if backend == "auto" and missing(x):
        tell_once("xnor_conv2d")
    with in_full_precision(x):
        return chosen.run(x, weight, stride, padding)


def explain(x: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        x: first input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(CONV2D, torch.empty(1, 1, 1, 1) if x is None else x)
