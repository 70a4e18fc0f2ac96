"""Long convolution with torch.fft, which is already compiled code: MKL or pocketfft on a CPU, cuFFT on a GPU.

Both sequences are padded to one length n, large enough that nothing wraps around into the L positions that are kept; n
has no prime factor above 5, so that the transform is fast. The anticausal kernel is stored at the end of the padded
kernel, whose indices count as negative there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["both_sides", "fast_length", "least_length", "long_conv_eager"]


@lru_cache(maxsize=256)
def fast_length(least: int) -> int:
    """The smallest even number with no prime factor above 5.

    Args:
        least: lower bound.

    Returns:
        n = 2 · 2^a · 3^b · 5^c, at least `least`.
    """
    best, five = 1 << max(1, (least - 1).bit_length()), 2
    while five < best:
        three = five
        while three < best:
            two = three << max(0, (-(-least // three) - 1).bit_length())
            best = min(best, two)
            three *= 3
        five *= 5
    return best


def least_length(u: Tensor, kernel: Tensor, reverse: Tensor | None) -> int:
    """The smallest period at which nothing wraps around into a kept position.

    Args:
        u: input, (B, C, L).
        kernel: causal kernel, (H, C, K).
        reverse: anticausal kernel, (H, C, K'), or None.

    Returns:
        The larger of L + K - 1 and L + K'.
    """
    after = 0 if reverse is None else reverse.shape[2]
    return u.shape[2] + max(kernel.shape[2] - 1, after)


def _traced_length(u: Tensor, kernel: Tensor, reverse: Tensor | None) -> int:
    """An even period for lengths that may be symbolic, which cannot be factored or compared with numbers."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    most = u.shape[2]
    for side in (kernel, reverse):
        if side is not None and not statically_known_true(side.shape[2] == u.shape[2]):
            most = most + side.shape[2]
    return 2 * most


def both_sides(kernel: Tensor, reverse: Tensor | None, n: int) -> Tensor:
    """Combine both kernels into one of period n.

    Args:
        kernel: causal kernel, (H, C, K).
        reverse: anticausal kernel, (H, C, K'), or None.
        n: period, at least K and K'.

    Returns:
        (H, C, K), or (H, C, n) with `reverse` stored backwards at the end.
    """
    if reverse is None:
        return kernel
    return F.pad(kernel, (0, n - kernel.shape[2])) + F.pad(reverse.flip(2), (n - reverse.shape[2], 0))


def long_conv_eager(u: Tensor, kernel: Tensor, D: Tensor | None, reverse: Tensor | None) -> Tensor:
    """`long_conv_reference` with the Fourier transform.

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
    x = u.to(wide)
    n = (
        _traced_length(u, kernel, reverse)
        if torch.compiler.is_compiling()
        else fast_length(least_length(u, kernel, reverse))
    )
    both = both_sides(kernel.to(wide), reverse if reverse is None else reverse.to(wide), n)
    # (B, 1, C, n/2 + 1) and (H, C, n/2 + 1)
    signal, weights = torch.fft.rfft(x[:, None], n=n), torch.fft.rfft(both, n=n)
    y = torch.fft.irfft(signal * weights, n=n)[..., :length]
    if D is not None:
        y = y + D[..., None].to(wide) * x[:, None]
    return y.to(u.dtype)
