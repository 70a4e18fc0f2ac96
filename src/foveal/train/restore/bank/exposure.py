"""Light: pictures taken in the dark, and pictures exposed too little or too much. Differentiable.

Light adds up before the camera's curve, so both work on linear light, with the sRGB curve undone (`to_linear`,
IEC 61966-2-1) and put back:

    exposure:  y = curve( min(1, 2^stops · lin(x)) )
    dark:      y = curve( gain · lin(x) · cast + n ),  n as shot and read noise of the sensor

*Source*: the chain of T. Brooks et al., "Unprocessing Images for Learned Raw Denoising" (arXiv:1811.11127),
section 3, with a plain curve instead of the cameras' tone maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.train.restore.bank._chance import between, checked, normal

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Dark", "Exposure", "to_linear", "to_srgb"]


def to_linear(srgb: Tensor) -> Tensor:
    """Linear light of sRGB values.

    Args:
        srgb: any shape, in [0, 1].

    Returns:
        The same shape, in [0, 1].
    """
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """The sRGB curve, inverse of `to_linear`.

    Args:
        linear: any shape, in [0, 1].

    Returns:
        The same shape, in [0, 1].
    """
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


@dataclass(frozen=True)
class Exposure:
    """A picture exposed by some stops more or less than it should be.

    Args:
        stops: powers of two of light, -6 to 4; what becomes brighter than white is lost.

    Raises:
        ValueError: a strength outside its range.
    """

    stops: float = -2.0

    def __post_init__(self) -> None:
        checked("exposure", stops=(self.stops, -6, 4))

    @classmethod
    def draw(cls, generator: Generator) -> Exposure:
        """-3 to 1.5 stops.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(between(-3, 1.5, generator))

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: takes no part.

        Returns:
            The same shape, in [0, 1].
        """
        return to_srgb((to_linear(pictures) * 2**self.stops).clamp(0, 1))


@dataclass(frozen=True)
class Dark:
    """A picture taken with too little light, by a sensor that shows it.

    Args:
        gain: light that is left, 0.01 to 1.
        shot: variance of shot noise over the signal, of linear light after the gain; 0 to 0.05.
        read: standard deviation of read noise, of linear light after the gain; 0 to 0.02.
        cast: factor of blue's light; red's is its inverse; 0.5 to 2.

    Raises:
        ValueError: a strength outside its range.
    """

    gain: float = 0.1
    shot: float = 2e-4
    read: float = 5e-4
    cast: float = 1.0

    def __post_init__(self) -> None:
        checked(
            "dark", gain=(self.gain, 0.01, 1), shot=(self.shot, 0, 0.05), read=(self.read, 0, 0.02),
            cast=(self.cast, 0.5, 2),
        )  # fmt: skip

    @classmethod
    def draw(cls, generator: Generator) -> Dark:
        """3 to 30 % of the light, little to visible noise, a slight cast.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        gain = between(0.03, 0.3, generator, log=True)
        return cls(
            gain,
            between(2e-5, 4e-4, generator, log=True),
            between(1e-4, 1.5e-3, generator, log=True),
            between(0.85, 1.18, generator, log=True),
        )

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of all chance.

        Returns:
            The same shape, in [0, 1].
        """
        colours = pictures.new_tensor([1 / self.cast, 1.0, self.cast]).view(3, 1, 1)
        light = to_linear(pictures) * self.gain * colours
        n = normal(pictures, tuple(pictures.shape), generator)
        return to_srgb((light + (self.shot * light + self.read**2).sqrt() * n).clamp(0, 1))
