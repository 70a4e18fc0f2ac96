"""Depthwise convolution in one, two or three dimensions with kernels as large as the input, direct or by FFT.

    y(q) = Σ_p kernel(p) x(q + p - ⌊K/2⌋)            zeros outside of x; causal: p - (K - 1) in the place of p - ⌊K/2⌋

The Fourier transform takes O(N log N) operations whatever the kernel's size, the sum O(N K) for K taps.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.backends import in_full_precision
from foveal.ops.long_conv.eager import fast_length

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FFT_TAPS", "direct_conv", "fft_conv", "global_conv"]

# Taps of a kernel, over one, two and three axes, from which `global_conv` takes the Fourier transform: torch's direct
# depthwise convolution is slow for sequences and fast for pictures below 15×15 and for volumes.
FFT_TAPS = {1: 64, 2: 200, 3: 1000}
_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _taps(x: Tensor, kernel: Tensor, *, causal: bool) -> Sequence[int]:
    """Sizes of the kernel, checked."""
    axes = x.ndim - 2
    if axes not in _CONV:
        raise ValueError(f"x must be (B, C, …) with 1, 2 or 3 axes of places, got {tuple(x.shape)}")
    taps = kernel.shape[-axes:]
    if tuple(kernel.shape[:-axes]) not in ((x.shape[1],), tuple(x.shape[:2])):
        raise ValueError(
            f"kernel must be ({x.shape[1]}, …) or {tuple(x.shape[:2])} and {axes} axes of taps for inputs of "
            f"{tuple(x.shape)}, got {tuple(kernel.shape)}"
        )
    if causal and axes > 1:
        raise ValueError(f"causal needs one axis, which is time, got {axes}")
    if not causal and any(size % 2 == 0 for size in taps):
        raise ValueError(f"a kernel with a middle needs odd sizes, got {tuple(taps)}; add a tap or take causal=True")
    return taps


def direct_conv(x: Tensor, kernel: Tensor, *, causal: bool = False) -> Tensor:
    """The sum itself, by torch's depthwise convolution.

    Args:
        x: (B, C, *sizes) of one, two or three axes.
        kernel: (C, *taps), odd if not `causal`; or (B, C, *taps), one for each sample.
        causal: whether the last tap meets the present and the others the past; one axis only.

    Returns:
        (B, C, *sizes).

    Raises:
        ValueError: shapes that do not fit.
    """
    taps = _taps(x, kernel, causal=causal)
    axes, each = len(taps), kernel.ndim == x.ndim
    # one kernel for each sample: samples become channels
    rows = x.flatten(0, 1)[None] if each else x
    if causal:
        rows = F.pad(rows, (taps[0] - 1, 0))
    padding = [0] if causal else [size // 2 for size in taps]
    y: Tensor = _CONV[axes](
        rows, kernel.reshape(-1, 1, *taps).to(x.dtype), padding=padding, groups=prod(kernel.shape[:-axes])
    )
    return y.view(x.shape)


def fft_conv(x: Tensor, kernel: Tensor, *, causal: bool = False) -> Tensor:
    """The same by Fourier transforms, in float32 at least.

    Args:
        x: (B, C, *sizes) of one, two or three axes.
        kernel: (C, *taps), odd if not `causal`; or (B, C, *taps), one for each sample.
        causal: whether the last tap meets the present and the others the past; one axis only.

    Returns:
        (B, C, *sizes).

    Raises:
        ValueError: shapes that do not fit.
    """
    taps = _taps(x, kernel, causal=causal)
    axes = tuple(range(-len(taps), 0))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    # what wraps around must not reach the places that are kept, from `first` on
    first = [0] if causal else [size // 2 for size in taps]
    # and a period shorter than the kernel would cut it
    periods = [
        fast_length(max(side + size - 1 - start, size))
        for side, size, start in zip(x.shape[2:], taps, first, strict=True)
    ]
    with in_full_precision(x):
        signal = torch.fft.rfftn(x.to(wide), s=periods, dim=axes)
        weights = torch.fft.rfftn(kernel.to(wide).flip(axes), s=periods, dim=axes)
        y = torch.fft.irfftn(signal * weights, s=periods, dim=axes)
    for axis, start, side in zip(axes, first, x.shape[2:], strict=True):
        y = y.narrow(axis, start, side)
    return y.to(x.dtype)


def global_conv(x: Tensor, kernel: Tensor, *, causal: bool = False, fft: bool | None = None) -> Tensor:
    """Convolve each channel with its kernel.

    Args:
        x: (B, C, *sizes) of one, two or three axes.
        kernel: (C, *taps), odd if not `causal`; or (B, C, *taps), one for each sample.
        causal: whether the last tap meets the present and the others the past; one axis only.
        fft: whether by Fourier transforms; None takes them from `FFT_TAPS` taps on.

    Returns:
        (B, C, *sizes).

    Raises:
        ValueError: shapes that do not fit.
    """
    if fft is None:
        fft = prod(kernel.shape[2 - x.ndim :]) >= FFT_TAPS.get(x.ndim - 2, 0)
    return (fft_conv if fft else direct_conv)(x, kernel, causal=causal)
