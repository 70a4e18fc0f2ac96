"""Blur: out of focus, or moved while the shutter was open: y = k * x, with k ≥ 0 and sum 1. Differentiable.

Out of focus, k is a Gaussian; moved, a straight stroke. Borders are mirrored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.train.restore.bank._chance import between, checked
from foveal.train.restore.bank.rain import line

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Blur", "MotionBlur", "filtered", "gaussian"]


def gaussian(sigma: float) -> Tensor:
    """A Gaussian filter.

    Args:
        sigma: standard deviation in pixels, above 0.

    Returns:
        (k, k), odd, sum 1; cut at four standard deviations.
    """
    radius = max(1, math.ceil(4 * sigma))
    place = torch.arange(-radius, radius + 1.0)
    row = torch.exp(-place.square() / (2 * sigma**2))
    kernel = torch.outer(row, row)
    return kernel / kernel.sum()


def filtered(pictures: Tensor, kernel: Tensor) -> Tensor:
    """Pictures through one filter, borders mirrored (repeated where the picture is smaller than the filter).

    Args:
        pictures: (B, C, H, W).
        kernel: (k, k), odd.

    Returns:
        The same shape.
    """
    radius = len(kernel) // 2
    mode = "reflect" if min(pictures.shape[-2:]) > radius else "replicate"
    weight = kernel.flip(0, 1).to(pictures)[None, None].repeat(pictures.shape[1], 1, 1, 1)
    return F.conv2d(F.pad(pictures, (radius,) * 4, mode=mode), weight, groups=pictures.shape[1])


@dataclass(frozen=True)
class Blur:
    """A picture out of focus.

    Args:
        sigma: standard deviation of the Gaussian, 0 to 8 pixels.

    Raises:
        ValueError: a strength outside its range.
    """

    sigma: float = 2.0

    def __post_init__(self) -> None:
        checked("blur", sigma=(self.sigma, 0, 8))

    @classmethod
    def draw(cls, generator: Generator) -> Blur:
        """σ from 0.5 to 3.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(between(0.5, 3, generator))

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: takes no part.

        Returns:
            The same shape, in [0, 1].
        """
        return filtered(pictures, gaussian(self.sigma)).clamp(0, 1) if self.sigma else pictures


@dataclass(frozen=True)
class MotionBlur:
    """A picture of which the camera moved straight on.

    Args:
        length: of the movement, 0 to 40 pixels.
        angle: to the vertical, degrees, -90 to 90.

    Raises:
        ValueError: a strength outside its range.
    """

    length: float = 12.0
    angle: float = 30.0

    def __post_init__(self) -> None:
        checked("motion", length=(self.length, 0, 40), angle=(self.angle, -90, 90))

    @classmethod
    def draw(cls, generator: Generator) -> MotionBlur:
        """4 to 20 pixels in any direction.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(between(4, 20, generator), between(-90, 90, generator))

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: takes no part.

        Returns:
            The same shape, in [0, 1].
        """
        return filtered(pictures, line(self.length, self.angle, 0.5)).clamp(0, 1) if self.length else pictures
