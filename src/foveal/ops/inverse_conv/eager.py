"""Inverse of a masked convolution by sweeps over anti-diagonals.

Pixels of one anti-diagonal, i + j = d, do not meet each other, so H + W - 1 sweeps do what H·W substitutions did:

    X_d = W_00⁻¹ Y_d - [W_00⁻¹ W_ab]_(ab ≠ 00) · windows(X_(d-1), X_(d-2), …)

one matrix product each. The picture is stored askew, by diagonal and row, where the windows of a diagonal are a strided
view. With M for the convolution and g for the gradient of x = M⁻¹ y, the gradients are

    of y    u = M⁻ᵀ g           the same sweeps from the other end, with W_abᵀ
    of W    -∂(u · M x)/∂W      the weight gradient of an ordinary convolution of x
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from foveal.ops.inverse_conv.reference import masked_kernel

__all__ = ["inverse_conv_eager"]


def _askew(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where a place askew, (H+W-1, H), is read in the picture, and a pixel, (H, W), askew; both flat."""
    diagonals = torch.arange(height + width - 1, device=device)[:, None]
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    there = rows * width + (diagonals - rows).clamp(0, width - 1)
    back = (rows[:, None] + columns) * height + rows[:, None]
    return there.flatten(), back.flatten()


def _solve(y: Tensor, kernel: Tensor, groups: int, upper: bool) -> Tensor:
    """Solve the convolution for its input; `kernel` is masked, its last tap lower or upper triangular."""
    batch, channels, height, width = y.shape
    taps = kernel.unflatten(0, (groups, -1))  # (G, C/G, C/G, kh, kw)
    of_group, (rows, columns) = taps.shape[1], taps.shape[-2:]
    last = taps[..., -1, -1]

    def divide(right: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(last, right, upper=upper, unitriangular=True)

    # (G, C/G, kh·kw·C/G), the last tap 0
    order = taps.permute(0, 1, 3, 4, 2).flatten(2)
    left = F.pad(divide(order[..., :-of_group]), (0, of_group))
    there, back = _askew(height, width, y.device)
    # (G, C/G, H+W-1, H, B)
    right = y.permute(1, 2, 3, 0).reshape(groups, of_group, -1, batch)[:, :, there]
    right = divide(right.flatten(2)).unflatten(2, (-1, height, batch))
    # Before the first diagonal and above the first row there are zeros.
    done = y.new_zeros(groups, of_group, height + width - 1 + rows + columns - 2, height + rows - 1, batch)
    of_channel, of_diagonal, of_row = done.stride()[1:4]
    strides = (done.stride(0), of_diagonal + of_row, of_diagonal, of_channel, of_row, 1)
    for diagonal in range(height + width - 1):
        first, end = max(0, diagonal - width + 1), min(height, diagonal + 1)
        shape = (groups, rows, columns, of_group, end - first, batch)
        windows = done.as_strided(shape, strides, diagonal * of_diagonal + first * of_row)
        solved = torch.baddbmm(
            right[:, :, diagonal, first:end].flatten(2),
            left,
            windows.reshape(groups, -1, (end - first) * batch),
            alpha=-1,
        )
        place = done[:, :, diagonal + rows + columns - 2, first + rows - 1 : end + rows - 1]
        place.copy_(solved.unflatten(2, (-1, batch)))
    x = done[:, :, rows + columns - 2 :, rows - 1 :].reshape(channels, -1, batch)[:, back]
    return x.unflatten(1, (height, width)).permute(3, 0, 1, 2).contiguous()


class _Inverse(torch.autograd.Function):
    """Function of y and the masked kernel; its gradient is one of its own calls, so that it has gradients as well."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, kernel: Tensor, groups: int, upper: bool) -> Tensor:
        x = _solve(y, kernel, groups, upper)
        ctx.save_for_backward(x, kernel)
        ctx.groups, ctx.upper = groups, upper
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        groups = ctx.groups
        transposed = kernel.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        turned: Any = _Inverse.apply(gradients[0].flip(2, 3), transposed, groups, not ctx.upper)
        of_y = turned.flip(2, 3)
        of_kernel = None
        if ctx.needs_input_grad[1]:
            padded = F.pad(x, (kernel.shape[3] - 1, 0, kernel.shape[2] - 1, 0))
            of_kernel = -conv2d_weight(padded, kernel.shape, of_y, groups=groups)
        return of_y, of_kernel, None, None


def inverse_conv_eager(y: Tensor, weight: Tensor, groups: int) -> Tensor:
    """`inverse_conv_reference` with H + W - 1 sweeps forward and as many backward.

    Args:
        y: output of the convolution, (B, C, H, W).
        weight: kernel, (C, C/groups, kh, kw).
        groups: number of groups of channels.

    Returns:
        x, (B, C, H, W), in the dtype of `y`.
    """
    if not y.numel():
        return y + 0 * weight.sum().to(y.dtype)
    wide = torch.promote_types(y.dtype, torch.float32)
    x: Any = _Inverse.apply(y.to(wide), masked_kernel(weight, groups=groups).to(wide), groups, False)
    return x.to(y.dtype)
