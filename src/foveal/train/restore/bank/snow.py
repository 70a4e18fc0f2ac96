"""Snow: white flakes, near ones large, soft and drawn out, far ones small. Differentiable.

    y = x · (1 − m) + c · m,   m = 1 − Π (1 − opacity · mₖ)

Each layer k of flakes is sparse random points through a disc of its size, drawn out along the wind; c is nearly white.

*Source*: the mask and blend of Y.-F. Liu et al., "DesnowNet: Context-Aware Deep Network for Snow Removal"
(arXiv:1708.04512), equation 1, with flakes of three sizes as its Snow100K has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F

from foveal.train.restore.bank._chance import between, checked, uniform
from foveal.train.restore.bank.rain import line

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Snow"]

# Of each layer: size over the largest, flakes over the number asked for, opacity over the strongest.
LAYERS = ((1.0, 0.08, 0.75), (0.55, 0.3, 0.9), (0.3, 1.0, 1.0))


@dataclass(frozen=True)
class Snow:
    """Snow.

    Args:
        opacity: of the flakes, 0 to 1.
        flakes: small ones per thousand pixels, 0 to 30.
        size: standard deviation of the largest, 0.5 to 6 pixels.
        streak: length over which the wind draws them out, 0 to 30 pixels.
        angle: of the wind to the vertical, -60 to 60 degrees.
        colour: c, 0.7 to 1.

    Raises:
        ValueError: a strength outside its range.
    """

    opacity: float = 0.9
    flakes: float = 6.0
    size: float = 2.5
    streak: float = 4.0
    angle: float = 20.0
    colour: float = 0.96

    def __post_init__(self) -> None:
        checked(
            "snow", opacity=(self.opacity, 0, 1), flakes=(self.flakes, 0, 30), size=(self.size, 0.5, 6),
            streak=(self.streak, 0, 30), angle=(self.angle, -60, 60), colour=(self.colour, 0.7, 1),
        )  # fmt: skip

    @classmethod
    def draw(cls, generator: Generator) -> Snow:
        """Light to heavy snow.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(
            between(0.6, 1.0, generator),
            between(2, 12, generator, log=True),
            between(1.5, 4, generator),
            between(0, 10, generator),
            between(-45, 45, generator),
            between(0.85, 1, generator),
        )

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of the flakes.

        Returns:
            The same shape, in [0, 1].
        """
        batch, _, height, width = pictures.shape
        clear = pictures.new_ones(batch, 1, height, width)
        for size, number, opacity in LAYERS:
            disc = line(max(self.streak * size, 1e-3), self.angle, max(self.size * size, 0.4)).to(pictures)
            radius = len(disc) // 2
            chance = uniform(pictures, (batch, 1, height + 2 * radius, width + 2 * radius), generator)
            points = (chance < number * self.flakes / 1000).to(pictures)
            drawn = F.conv2d(points, (disc / disc.max())[None, None]).clamp(0, 1)
            clear = clear * (1 - self.opacity * opacity * drawn)
        return (pictures * clear + self.colour * (1 - clear)).clamp(0, 1)
