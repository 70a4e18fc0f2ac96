"""Products and convolutions of signs, in plain torch, and the packing of signs to bits.

    s(x) = 1 for x ≥ 0, else −1                                      (1)
    matmul(a, b)[m, n] = Σ_k s(a[m, k]) · s(b[n, k])                 (2)
    conv(x, w) = s(w) ∗ s(x), zero outside the picture               (3)

The gradient of s is 1 for |x| ≤ 1, else 0, the straight-through estimator (arXiv:1602.02830, equation 4). Sums of up
to 2²⁴ signs are exact in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["WORD", "pack_rows", "sign", "unpack_rows", "xnor_conv2d_reference", "xnor_matmul_reference"]

WORD = 64  # signs of a word


def sign(x: Tensor) -> Tensor:
    """Sign of each value, equation 1, with gradient 1 for |x| ≤ 1, else 0.

    Args:
        x: values.

    Returns:
        1 or −1; 1 for 0.
    """
    one = torch.ones((), dtype=x.dtype, device=x.device)
    s = torch.where(x >= 0, one, -one)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return s
    held = torch.where(x.abs() <= 1, x, 0 * one)
    return s + (held - held.detach())  # a difference of equals, so the value stays exact


def pack_rows(x: Tensor) -> Tensor:
    """Signs along the last axis as bits.

    Args:
        x: values, (…, K).

    Returns:
        Words, (…, ⌈K/64⌉), int64: bit i of word j is 1 where x[64·j + i] ≥ 0; unused bits are 0.
    """
    bits = F.pad((x >= 0).to(torch.int64), (0, -x.shape[-1] % WORD)).unflatten(-1, (-1, WORD))
    return (bits << torch.arange(WORD, device=x.device)).sum(-1)


def unpack_rows(words: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack_rows`.

    Args:
        words: words, (…, ⌈K/64⌉), int64.
        count: number of signs, K.
        dtype: dtype of the result.

    Returns:
        1 or −1, (…, K).
    """
    bits = (words[..., None] >> torch.arange(WORD, device=words.device)) & 1
    return (2 * bits - 1).flatten(-2)[..., :count].to(dtype)


def xnor_matmul_reference(a: Tensor, b: Tensor) -> Tensor:
    """Equation 2.

    Args:
        a: values, (…, M, K).
        b: values, (…, N, K).

    Returns:
        Sums, (…, M, N).
    """
    return torch.einsum("...mk,...nk->...mn", sign(a), sign(b))


def xnor_conv2d_reference(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Equation 3, tap by tap.

    Args:
        x: picture, (B, C, H, W).
        weight: weight, (O, C, kh, kw).
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.

    Returns:
        Sums, (B, O, H', W').
    """
    signs, kernel = F.pad(sign(x), (padding,) * 4), sign(weight)
    height, width = weight.shape[2:]
    bottom, right = signs.shape[2] - height + 1, signs.shape[3] - width + 1
    return torch.stack(
        [
            # (B, C, H', W') times (O, C)
            torch.einsum(
                "bchw,oc->bohw", signs[:, :, i : i + bottom : stride, j : j + right : stride], kernel[:, :, i, j]
            )
            for i in range(height)
            for j in range(width)
        ]
    ).sum(0)
