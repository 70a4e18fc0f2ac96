"""Wiener filters: a known blur undone in closed form, with several regularisations, and where the blur varies.

For y = k ∗ x + noise on a circle, least squares with a ridge r have this solution, K and Y being the Fourier transforms
of k and y:

    x̂ = argmin ‖k ∗ x - y‖² + r ‖x‖²,   x̂ = F⁻¹( conj(K) Y / (|K|² + r) )

A small r gives a sharp, noisy picture, a large one a smooth, clean one. Where the blur varies from ring to ring of the
field, the whole picture is filtered for each ring, and what the rings say is blended by `ring_weights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WienerBank", "ring_weights", "transfer", "wiener"]


def transfer(kernels: Tensor, height: int, width: int) -> Tensor:
    """Fourier transforms of filters on a circle, centred at the first pixel.

    Args:
        kernels: (..., k, k), odd k.
        height: H, at least k.
        width: W, at least k.

    Returns:
        (..., H, W // 2 + 1), complex.
    """
    side = kernels.shape[-1]
    padded = F.pad(kernels, (0, width - side, 0, height - side))
    return torch.fft.rfft2(padded.roll((-(side // 2),) * 2, (-2, -1)))


def wiener(pictures: Tensor, kernels: Tensor, ratios: Tensor) -> Tensor:
    """Undo filters on a circle, once for each regularisation.

    Args:
        pictures: (B, C, H, W), at least k pixels high and wide.
        kernels: of each channel, in R variants, (R, C, k, k), odd k.
        ratios: r, noise over signal, (M,), above 0.

    Returns:
        (B, M, R, C, H, W).
    """
    response = transfer(kernels, *pictures.shape[-2:])
    # (M, R, C, H, W // 2 + 1)
    inverse = response.conj() / (response.abs().square() + ratios.view(-1, 1, 1, 1, 1))
    return torch.fft.irfft2(torch.fft.rfft2(pictures)[:, None, None] * inverse, s=pictures.shape[-2:])


def ring_weights(rings: int, height: int, width: int) -> Tensor:
    """How much each ring of the field counts at each pixel; neighbouring rings are blended linearly.

    Args:
        rings: R, at least 1; the first is the middle, the last the corners.
        height: H.
        width: W.

    Returns:
        (R, H, W), sum 1 over the rings.
    """
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    place = ((y.square() + x.square()) / 2).sqrt() * (rings - 1)
    return (1 - (place - torch.arange(rings).view(-1, 1, 1)).abs()).clamp_min(0)


class WienerBank(nn.Module):
    """A picture by several Wiener filters, (B, C, H, W) to (B, M·C, H, W), sharp and noisy first if `ratios` ascend.

    Borders are mirrored before filtering (repeated where the picture is smaller than half the filter).

    Args:
        kernels: point spread functions of the rings, (R, C, k, k), odd k.
        ratios: r of each filter, above 0.

    Raises:
        ValueError: filters with even sides, or a ratio that is not above 0.
    """

    kernels: Tensor
    ratios: Tensor

    def __init__(self, kernels: Tensor, ratios: Sequence[float]) -> None:
        super().__init__()
        if kernels.ndim != 4 or kernels.shape[-1] != kernels.shape[-2] or not kernels.shape[-1] % 2:
            raise ValueError(f"kernels must be (rings, channels, k, k) with odd k, got {tuple(kernels.shape)}")
        if min(ratios) <= 0:
            raise ValueError(f"ratios must be above 0, got {tuple(ratios)}; r = 0 amplifies noise without bound")
        self.register_buffer("kernels", kernels.clone())
        self.register_buffer("ratios", torch.tensor(tuple(ratios)))

    def forward(self, x: Tensor) -> Tensor:
        radius = self.kernels.shape[-1] // 2
        height, width = x.shape[-2:]
        seen = F.pad(x, (radius,) * 4, mode="reflect" if min(height, width) > radius else "replicate")
        found = wiener(seen, self.kernels, self.ratios)[..., radius : radius + height, radius : radius + width]
        weights = ring_weights(len(self.kernels), height, width).to(x)
        return torch.einsum("bmrchw,rhw->bmchw", found, weights).flatten(1, 2)
