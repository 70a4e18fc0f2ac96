"""Inverse of a masked convolution, pixel by pixel: the plain form that the fast one is compared with.

*Source*: A. Kallappa, S. Nagar, G. Varma, "FInC Flow: Fast and Invertible k×k Convolutions for Normalizing Flows",
VISAPP 2023 (arXiv:2301.09266), section 3.
*Differs from the paper*: nothing; this is the substitution that the paper makes parallel.
*Provenance*: written from the formula. Zeros pad the picture above and on the left only, so that a pixel meets pixels
above and to the left of it, and W_00, the last tap, is unit lower triangular in the channels:

    y_ij = Σ_ab W_ab x_(i-a)(j-b)                              a < kh rows up, b < kw columns left    (1)
    W_00 x_ij = y_ij - Σ_(ab ≠ 00) W_ab x_(i-a)(j-b)                                                  (2)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inverse_conv_reference", "masked_kernel"]


def masked_kernel(weight: Tensor, *, groups: int = 1) -> Tensor:
    """The kernel that is used: ones on the diagonal of the last tap and zeros above it.

    Args:
        weight: kernel, (C, C/groups, kh, kw).
        groups: number of groups of channels.

    Returns:
        The same with the last tap of each group unit lower triangular.
    """
    of_group = weight.shape[1]
    one = torch.eye(of_group, dtype=weight.dtype, device=weight.device).repeat(groups, 1)
    last = weight[:, :, -1, -1].unflatten(0, (groups, of_group)).tril(-1).flatten(0, 1) + one
    place = torch.zeros(weight.shape[2:], dtype=torch.bool, device=weight.device)
    place[-1, -1] = True
    return torch.where(place, last[:, :, None, None], weight)


def inverse_conv_reference(y: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Equation (2), one pixel after the other.

    Args:
        y: output of the convolution, (B, C, H, W).
        weight: kernel, (C, C/groups, kh, kw).
        groups: number of groups of channels.

    Returns:
        x, (B, C, H, W), in the dtype of `y`.
    """
    wide = torch.promote_types(y.dtype, torch.float32)
    taps = masked_kernel(weight, groups=groups).to(wide).unflatten(0, (groups, -1))  # (G, C/G, C/G, kh, kw)
    rows, columns = taps.shape[-2:]
    height, width = y.shape[2:]
    # (B, G, C/G, 1) each
    pixels: dict[tuple[int, int], Tensor] = {}
    for i in range(height):
        for j in range(width):
            rest = y[:, :, i, j].to(wide).unflatten(1, (groups, -1))[..., None]
            for a in range(min(rows, i + 1)):
                for b in range(min(columns, j + 1)):
                    if a or b:
                        rest = rest - taps[..., -1 - a, -1 - b] @ pixels[i - a, j - b]
            pixels[i, j] = torch.linalg.solve_triangular(taps[..., -1, -1], rest, upper=False, unitriangular=True)
    if not pixels:
        return y + 0 * weight.sum().to(y.dtype)
    return torch.stack(list(pixels.values()), -1).reshape(y.shape).to(y.dtype)
