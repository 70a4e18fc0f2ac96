"""Leaky ReLU followed by a 3×3 convolution, in torch's own operators."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["conv3x3_reference"]


def conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None) -> Tensor:
    """The activation, then the convolution: weight * leaky(x) + bias.

    Args:
        x: input, (B, C, H, W).
        weight: convolution kernel, (C', C, 3, 3).
        bias: bias, (C',).
        slope: slope of the activation for negative values, one number.

    Returns:
        Output, (B, C', H, W).
    """
    return F.conv2d(x if slope is None else F.prelu(x, slope.reshape(1)), weight, bias, padding=1)
