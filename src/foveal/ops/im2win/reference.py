"""Im2win as it is written down: windows in order, then dot products of contiguous pieces.

x (B, C, H, W) padded by p; weight (O, C, kh, kw); output (B, O, H', W'):

    z[n, c, i, x·kh + u] = x[n, c, i·s + u, x],   x < W + 2p, u < kh                                        (1)
    f[o, c, v·kh + u] = weight[o, c, u, v]                                                                  (2)
    y[n, o, i, j] = Σ_c Σ_{t < kh·kw} z[n, c, i, j·s·kh + t] f[o, c, t]                                      (3)

z (B, C, H', kh·(W + 2p)) is the buffer. im2col's holds kw·W' columns of kh values where z holds W + 2p: a pixel is
copied for each row of its window, not for each place in it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["im2col_elements", "im2win_conv2d_reference", "im2win_elements", "window_order", "windows"]


def windows(x: Tensor, kernel_height: int, stride: int) -> Tensor:
    """The buffer z: equation 1.

    Args:
        x: padded input, (B, C, H, W).
        kernel_height: kh.
        stride: s.

    Returns:
        Buffer, (B, C, H', kh·W).
    """
    # (B, C, H', W, kh)
    return x.unfold(2, kernel_height, stride).flatten(3)


def window_order(weight: Tensor) -> Tensor:
    """The weight in the order of a window: equation 2.

    Args:
        weight: weight, (O, C, kh, kw).

    Returns:
        Weight, (O, C, kh·kw).
    """
    return weight.mT.flatten(2)


def im2win_elements(shape: tuple[int, ...], kernel_size: tuple[int, int], stride: int = 1, padding: int = 0) -> int:
    """Elements of the buffer z.

    Args:
        shape: shape of the input, (B, C, H, W).
        kernel_size: kh and kw.
        stride: s.
        padding: p.

    Returns:
        B·C·H'·kh·(W + 2p).
    """
    batch, channels, height, width = shape
    down = (height + 2 * padding - kernel_size[0]) // stride + 1
    return batch * channels * down * kernel_size[0] * (width + 2 * padding)


def im2col_elements(shape: tuple[int, ...], kernel_size: tuple[int, int], stride: int = 1, padding: int = 0) -> int:
    """Elements of im2col's buffer, `torch.nn.functional.unfold`.

    Args:
        shape: shape of the input, (B, C, H, W).
        kernel_size: kh and kw.
        stride: s.
        padding: p.

    Returns:
        B·C·kh·kw·H'·W'.
    """
    batch, channels, *sides = shape
    down, across = ((n + 2 * padding - k) // stride + 1 for n, k in zip(sides, kernel_size, strict=True))
    return batch * channels * kernel_size[0] * kernel_size[1] * down * across


def im2win_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Equations 1 to 3, one column of outputs after the other.

    Args:
        x: input, (B, C, H, W).
        weight: weight, (O, C, kh, kw).
        bias: bias, (O,), or None.
        stride: s.
        padding: p.

    Returns:
        Output, (B, O, H', W').
    """
    (kernel_height, kernel_width), wide = weight.shape[2:], x.shape[3] + 2 * padding
    z, f = windows(F.pad(x, (padding,) * 4), kernel_height, stride), window_order(weight)
    columns = []
    for j in range((wide - kernel_width) // stride + 1):
        first = j * stride * kernel_height
        columns.append(torch.einsum("ncit,oct->noi", z[..., first : first + f.shape[2]], f))
    y = torch.stack(columns, 3)
    return y if bias is None else y + bias[:, None, None]
