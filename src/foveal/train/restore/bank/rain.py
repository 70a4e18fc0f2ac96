"""Rain: bright streaks along one direction, and what far rain does, a veil. Differentiable.

    y = x + (1 − x) · s,   s = min(1, opacity · normalised( drops * streak ))  then a veil of  veil · (0.7 − y)

Drops are sparse random points; the streak is a thin line of some length and angle, softened across, that each point is
drawn out to. The blend is screen-like: rain is bright and cannot darken.

*Source*: streaks added to a clean picture as in W. Yang et al., "Deep Joint Rain Detection and Removal from a Single
Image" (arXiv:1609.07769), section 3, with the veil of its heavy rain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.train.restore.bank._chance import between, checked, uniform

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Rain", "line"]


def line(length: float, angle: float, width: float) -> Tensor:
    """A straight stroke as a filter.

    Args:
        length: in pixels.
        angle: of the stroke to the vertical, degrees.
        width: standard deviation across, in pixels.

    Returns:
        (k, k), odd, sum 1.
    """
    radius = math.ceil(length / 2 + 2 * width)
    y, x = torch.meshgrid(*(torch.arange(-radius, radius + 1.0),) * 2, indexing="ij")
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    along, across = x * sine + y * cosine, x * cosine - y * sine
    beyond = (along.abs() - length / 2).clamp_min(0)
    stroke = torch.exp(-(across**2 + beyond**2) / (2 * width**2))
    return stroke / stroke.sum()


@dataclass(frozen=True)
class Rain:
    """Rain.

    Args:
        opacity: of the strongest streaks, 0 to 1.
        drops: streaks per thousand pixels, 0 to 30.
        length: of a streak, 3 to 60 pixels.
        angle: to the vertical, -45 to 45 degrees.
        width: of a streak, standard deviation, 0.4 to 2 pixels.
        veil: share of far rain's grey, 0 to 0.6.

    Raises:
        ValueError: a strength outside its range.
    """

    opacity: float = 0.7
    drops: float = 5.0
    length: float = 18.0
    angle: float = 10.0
    width: float = 0.7
    veil: float = 0.1

    def __post_init__(self) -> None:
        checked(
            "rain", opacity=(self.opacity, 0, 1), drops=(self.drops, 0, 30), length=(self.length, 3, 60),
            angle=(self.angle, -45, 45), width=(self.width, 0.4, 2), veil=(self.veil, 0, 0.6),
        )  # fmt: skip

    @classmethod
    def draw(cls, generator: Generator) -> Rain:
        """Light to heavy rain, at most 30 degrees from the vertical.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(
            between(0.4, 0.9, generator),
            between(2, 12, generator, log=True),
            between(8, 30, generator, log=True),
            between(-30, 30, generator),
            between(0.5, 1.1, generator),
            between(0, 0.25, generator),
        )

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of the drops.

        Returns:
            The same shape, in [0, 1].
        """
        if not self.opacity * self.drops:
            streaks = pictures.new_zeros(())
        else:
            stroke = line(self.length, self.angle, self.width).to(pictures)
            radius = len(stroke) // 2
            batch, _, height, width = pictures.shape
            shape = (batch, 1, height + 2 * radius, width + 2 * radius)
            chance = uniform(pictures, shape, generator)
            rate = self.drops / 1000
            points = torch.where(chance < rate, 0.5 + 0.5 * chance / rate, 0.0)  # as bright as they are rare
            drawn = F.conv2d(points, (stroke / stroke.max())[None, None])
            streaks = (self.opacity * drawn).clamp(0, 1)
        wet = pictures + (1 - pictures) * streaks
        return (wet + self.veil * (0.7 - wet)).clamp(0, 1)
