"""Integers in an exported file: ONNX's `QuantizeLinear` and `DequantizeLinear`, traced where torch rounds in floats.

Both are standard operators, of which every engine knows that the tensor between them is int8. They round to the nearest
integer, ties to even, and clip, as torch does here. Only for use inside an export (`torch.onnx.is_in_onnx_export()`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dequantize_linear", "quantize_linear"]

VERSION = 13  # of both operators


def _node(name: str, x: Tensor, scale: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros_like(scale, dtype=torch.int8)
    attributes: dict[str, Any] = {"axis": axis} if scale.ndim else {}
    return torch.onnx.ops.symbolic(name, (x, scale, zero), attributes, dtype=dtype, shape=x.shape, version=VERSION)


def quantize_linear(x: Tensor, scale: Tensor, *, axis: int = 0) -> Tensor:
    """Round to int8 codes.

    Args:
        x: values, float32.
        scale: value of one code, () or one per entry of `axis`, float32.
        axis: axis of the scales.

    Returns:
        Codes, int8, the shape of `x`.
    """
    return _node("QuantizeLinear", x, scale, axis, torch.int8)


def dequantize_linear(codes: Tensor, scale: Tensor, *, axis: int = 0) -> Tensor:
    """Multiply int8 codes by their scale.

    Args:
        codes: codes, int8.
        scale: value of one code, () or one per entry of `axis`, float32.
        axis: axis of the scales.

    Returns:
        Values, float32, the shape of `codes`.
    """
    return _node("DequantizeLinear", codes, scale, axis, torch.float32)
