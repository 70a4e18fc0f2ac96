"""Haze: y = x · t + a · (1 − t), t = exp(−β · d), with air light a and depth d in [0, 1]. Differentiable.

*Source*: the scattering model of H. Koschmieder (1924) as S. Narasimhan and S. Nayar write it, "Vision and the
Atmosphere", IJCV 48(3), 2002. A photograph has no depth here, so a smooth one is drawn: further towards the top, with
slow waves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.train.restore.bank._chance import between, checked, uniform

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Haze", "drawn_depth"]


def drawn_depth(like: Tensor, generator: Generator) -> Tensor:
    """A smooth depth for pictures that have none.

    Args:
        like: pictures, (B, C, H, W).
        generator: source of the waves.

    Returns:
        (B, 1, H, W) in [0, 1]; 1 is far.
    """
    batch, _, height, width = like.shape
    waves = F.interpolate(uniform(like, (batch, 1, 4, 4), generator), (height, width), mode="bicubic")
    far = torch.linspace(1, 0, height).to(like).view(1, 1, -1, 1)
    return (0.3 + 0.5 * far + 0.4 * (waves - 0.5)).clamp(0, 1)


@dataclass(frozen=True)
class Haze:
    """Haze or fog.

    Args:
        density: β, 0 to 4; at 1 the furthest keeps 37 % of its contrast.
        air: a, brightness of the haze, 0.5 to 1.

    Raises:
        ValueError: a strength outside its range.
    """

    density: float = 1.5
    air: float = 0.85

    def __post_init__(self) -> None:
        checked("haze", density=(self.density, 0, 4), air=(self.air, 0.5, 1))

    @classmethod
    def draw(cls, generator: Generator) -> Haze:
        """β from 0.5 to 2.5.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(between(0.5, 2.5, generator), between(0.7, 1.0, generator))

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of the depth.

        Returns:
            The same shape, in [0, 1].
        """
        left = torch.exp(-self.density * drawn_depth(pictures, generator))
        return (pictures * left + self.air * (1 - left)).clamp(0, 1)
