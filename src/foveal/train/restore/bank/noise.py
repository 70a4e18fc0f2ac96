"""Noise of a sensor: y = x + n, n of mean 0 and variance σ² (1 − s + s · x / ½).

*Source*: signal-dependent Gaussian noise, A. Foi et al., "Practical Poissonian-Gaussian noise modeling and fitting for
single-image raw-data", IEEE TIP 17(10), 2008, in the share of shot noise s. Differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.train.restore.bank._chance import between, checked, normal

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise.

    Args:
        sigma: σ, standard deviation at mid-grey, in levels of 255; 0 to 100.
        shot: s, share of the variance that grows with brightness; 0 to 1.
        grey: the same noise in red, green and blue.

    Raises:
        ValueError: a strength outside its range.
    """

    sigma: float = 25.0
    shot: float = 0.0
    grey: bool = False

    def __post_init__(self) -> None:
        checked("noise", sigma=(self.sigma, 0, 100), shot=(self.shot, 0, 1))

    @classmethod
    def draw(cls, generator: Generator) -> Noise:
        """σ from 2 to 50, as often small as large.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        sigma = between(2, 50, generator, log=True)
        return cls(sigma, between(0, 1, generator), between(0, 1, generator) < 0.2)

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of all chance.

        Returns:
            The same shape, in [0, 1].
        """
        batch, channels, height, width = pictures.shape
        n = normal(pictures, (batch, 1 if self.grey else channels, height, width), generator)
        scale = (1 - self.shot + self.shot * 2 * pictures.clamp_min(1e-6)).sqrt() if self.shot else 1.0
        return (pictures + self.sigma / 255 * scale * n).clamp(0, 1)
