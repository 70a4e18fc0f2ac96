"""Pictures damaged in five degrees, after CIFAR-10-C of D. Hendrycks and T. Dietterich (arXiv:1903.12261).

Noise, impulses, blur, contrast, fog and pixels stand for its families (noise, blur, weather, digital). All are made
from a seed, on pictures normalised as in `cifar10.pictures`, of any size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CORRUPTIONS", "corrupt"]

CORRUPTIONS = ("noise", "impulse", "blur", "contrast", "fog", "pixelate")
_DEGREES = {  # deviation; share; deviation in pixels of a 32-pixel side; share left; share of haze; side of a block
    "noise": (0.04, 0.06, 0.08, 0.11, 0.15),
    "impulse": (0.02, 0.04, 0.07, 0.11, 0.16),
    "blur": (0.5, 0.8, 1.1, 1.5, 2.0),
    "contrast": (0.7, 0.5, 0.35, 0.25, 0.15),
    "fog": (0.2, 0.35, 0.5, 0.6, 0.7),
    "pixelate": (0.8, 0.65, 0.5, 0.4, 0.3),
}


def _blurred(x: Tensor, deviation: float) -> Tensor:
    reach = max(1, round(3 * deviation))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype)
    line = torch.exp(-0.5 * (at / deviation) ** 2)
    line = (line / line.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, (reach,) * 4, mode="replicate")
    x = F.conv2d(x, line[:, :, None], groups=x.shape[1])
    return F.conv2d(x, line[..., None], groups=x.shape[1])


def _haze(x: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth noise of several octaves in [0, 1], (B, 1, H, W)."""
    haze = torch.zeros(len(x), 1, *x.shape[-2:])
    for octave in range(3):
        coarse = torch.rand(len(x), 1, 2 + 2 * octave, 2 + 2 * octave, generator=generator)
        haze += F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=True) / 2**octave
    return haze / haze.amax((2, 3), keepdim=True)


def corrupt(x: Tensor, kind: str, *, degree: int = 3, seed: int = 0) -> Tensor:
    """Damage pictures.

    Args:
        x: pictures, (B, 3, H, W), normalised as in `cifar10.pictures`.
        kind: one of `CORRUPTIONS`.
        degree: 1 to 5.
        seed: seed of noise and fog.

    Returns:
        Damaged pictures, of the same shape and normalisation.

    Raises:
        ValueError: another kind or degree.
    """
    if kind not in CORRUPTIONS or degree not in range(1, 6):
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)} and degree 1 to 5, got {kind!r} and {degree}")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    generator, amount = torch.Generator().manual_seed(seed), _DEGREES[kind][degree - 1]
    y = (x * std + mean).clamp(0, 1)
    if kind == "noise":
        y = y + amount * torch.randn(y.shape, generator=generator)
    elif kind == "impulse":
        drawn = torch.rand(y.shape, generator=generator)
        y = torch.where(drawn < amount / 2, 0.0, torch.where(drawn > 1 - amount / 2, 1.0, y))
    elif kind == "blur":
        y = _blurred(y, amount * x.shape[-1] / 32)
    elif kind == "contrast":
        centre = y.mean((2, 3), keepdim=True)
        y = centre + amount * (y - centre)
    elif kind == "fog":
        y = (1 - amount) * y + amount * _haze(y, generator)
    else:
        small = F.interpolate(y, scale_factor=amount, mode="area")
        y = F.interpolate(small, x.shape[-2:], mode="nearest")
    return (y.clamp(0, 1) - mean) / std
