"""Im2win with torch's own convolution: over the buffer, a window is a row of kh·kw values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from foveal.ops.im2win.reference import window_order, windows

__all__ = ["im2win_conv2d_eager"]


def im2win_conv2d_eager(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """`im2win_conv2d_reference`, all windows of the buffer at once.

    Args:
        x: input, (B, C, H, W).
        weight: weight, (O, C, kh, kw).
        bias: bias, (O,), or None.
        stride: s.
        padding: p.

    Returns:
        Output, (B, O, H', W').
    """
    tall = weight.shape[2]
    z = windows(F.pad(x, (padding,) * 4), tall, stride)
    return F.conv2d(z, window_order(weight)[:, :, None], bias, (1, stride * tall))
