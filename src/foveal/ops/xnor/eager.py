"""Products and convolutions of signs with torch's own matrix product and convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from foveal.ops.xnor.reference import sign

__all__ = ["xnor_conv2d_eager", "xnor_matmul_eager"]


def xnor_matmul_eager(a: Tensor, b: Tensor) -> Tensor:
    """`xnor_matmul_reference` as one matrix product.

    Args:
        a: values, (…, M, K).
        b: values, (…, N, K).

    Returns:
        Sums, (…, M, N).
    """
    return sign(a) @ sign(b).mT


def xnor_conv2d_eager(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`xnor_conv2d_reference` as one convolution.

    Args:
        x: picture, (B, C, H, W).
        weight: weight, (O, C, kh, kw).
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.

    Returns:
        Sums, (B, O, H', W').
    """
    return F.conv2d(sign(x), sign(weight), None, stride, padding)
