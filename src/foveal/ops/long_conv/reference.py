"""Long convolution as a sum over the kernel's positions: the plain form that every other backend is compared with.

*Source*: D. Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", ICML 2023,
arXiv:2302.06646, section 2; the two-sided form follows A. Gu et al., arXiv:2111.00396, as used for pictures.
*Differs from the paper*: nothing.
*Provenance*: written from the paper.

    y_t = Σ_{j ≤ t} k_j u_{t-j}  +  Σ_{j ≥ 0} r_j u_{t+1+j}  +  D ∘ u_t
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["long_conv_reference"]


def long_conv_reference(u: Tensor, kernel: Tensor, D: Tensor | None, reverse: Tensor | None) -> Tensor:
    """Position by position, in float32 (float64 if `u` is).

    Args:
        u: input, (B, C, L).
        kernel: causal kernel, (H, C, K), K at most L.
        D: skip weights, (H, C).
        reverse: anticausal kernel, (H, C, K'), K' at most L.

    Returns:
        Output, (B, H, C, L), in the dtype of `u`.
    """
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    length = u.shape[2]
    # (B, 1, C, L)
    x = u.to(wide)[:, None]
    y = x.new_zeros(u.shape[0], *kernel.shape[:2], length)
    for j in range(kernel.shape[2]):
        moved = torch.nn.functional.pad(x[..., : length - j], (j, 0))
        y = y + kernel[..., j, None].to(wide) * moved
    for j in range(0 if reverse is None else reverse.shape[2]):
        assert reverse is not None
        moved = torch.nn.functional.pad(x[..., j + 1 :], (0, min(j + 1, length)))
        y = y + reverse[..., j, None].to(wide) * moved
    if D is not None:
        y = y + D[..., None].to(wide) * x
    return y.to(u.dtype)
