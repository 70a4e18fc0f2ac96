"""Noise of a sensor and the levels that cameras have; see `foveal.nn.isp`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveal.nn.isp.colour import per_picture

__all__ = ["noise_levels", "shot_and_read_noise"]


def shot_and_read_noise(
    x: Tensor, shot: Tensor | float, read: Tensor | float, *, generator: torch.Generator | None = None
) -> Tensor:
    """Add the noise of a sensor: Gaussian of variance shot · x + read (Brooks, section 3.1).

    Args:
        x: linear values in [0, 1], (B, C, H, W).
        shot: variance a unit of signal, a number or one for each picture, (B,).
        read: variance in the dark, a number or one for each picture, (B,).
        generator: source of the noise; None takes torch's.

    Returns:
        Noisy values, (B, C, H, W), not clipped.
    """
    deviation = (per_picture(shot, x) * x.clamp(min=0) + per_picture(read, x)).sqrt()
    return x + deviation * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def noise_levels(count: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw levels of noise as cameras have them (Brooks, section 3.1, figure 4).

    log shot is uniform between log 1e-4 and log 0.012; log read is 2.18 log shot + 1.2 + N(0, 0.26²).

    Args:
        count: number of levels, B.
        generator: source of the levels; None takes torch's.

    Returns:
        shot and read, (B,) each.
    """
    low, high = math.log(1e-4), math.log(0.012)
    shot = low + (high - low) * torch.rand(count, generator=generator)
    read = 2.18 * shot + 1.2 + 0.26 * torch.randn(count, generator=generator)
    return shot.exp(), read.exp()
