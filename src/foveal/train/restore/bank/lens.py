"""A poor lens: sharp in the middle, blurred outwards, each colour a little differently, and a little noise.

The field is parted into rings from the middle to the corner; each colour of each ring is filtered by a Gaussian whose
width grows with the ring,  σ(r, c) = σ₀ + (σ₁ − σ₀) · r² · (1 + spread · c),  c = −1, 0, 1 for red, green and blue, and
neighbouring rings are blended linearly. Differentiable.

*Source*: the field-varying point spread function of a singlet, in its leading (quadratic) aberrations; M. Born and
E. Wolf, "Principles of Optics", chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.train.restore.bank._chance import between, checked, normal
from foveal.train.restore.bank.blur import filtered, gaussian

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Lens"]


@dataclass(frozen=True)
class Lens:
    """A poor lens.

    Args:
        middle: σ₀, blur in the middle, 0.3 to 4 pixels.
        corner: σ₁, blur in the corners, 0.3 to 6 pixels.
        spread: of colour, 0 to 0.5.
        sigma: noise, in levels of 255; 0 to 20.
        rings: in which the field is parted, at least 2.

    Raises:
        ValueError: a strength outside its range.
    """

    middle: float = 0.8
    corner: float = 2.5
    spread: float = 0.2
    sigma: float = 2.0
    rings: int = 5

    def __post_init__(self) -> None:
        checked(
            "lens", middle=(self.middle, 0.3, 4), corner=(self.corner, 0.3, 6), spread=(self.spread, 0, 0.5),
            sigma=(self.sigma, 0, 20), rings=(self.rings, 2, 32),
        )  # fmt: skip

    @classmethod
    def draw(cls, generator: Generator) -> Lens:
        """Slight to strong aberrations.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(
            between(0.5, 1.2, generator), between(1.5, 3.5, generator), between(0, 0.3, generator),
            between(0.5, 5, generator),
        )  # fmt: skip

    def widths(self) -> Tensor:
        """Blur of each ring and colour.

        Returns:
            σ in pixels, (rings, 3).
        """
        radius = torch.linspace(0, 1, self.rings)[:, None]
        colour = torch.tensor([-1.0, 0.0, 1.0])
        return self.middle + (self.corner - self.middle) * radius**2 * (1 + self.spread * colour)

    def kernels(self) -> Tensor:
        """Point spread functions, all of one size.

        Returns:
            (rings, 3, k, k), odd k, each sum 1.
        """
        made = [[gaussian(max(float(s), 0.2)) for s in row] for row in self.widths()]
        side = max(len(k) for row in made for k in row)
        pad = [[torch.nn.functional.pad(k, ((side - len(k)) // 2,) * 4) for k in row] for row in made]
        return torch.stack([torch.stack(row) for row in pad])

    def weights(self, height: int, width: int) -> Tensor:
        """How much each ring counts at each pixel.

        Args:
            height: H.
            width: W.

        Returns:
            (rings, H, W), sum 1 over the rings.
        """
        y = torch.linspace(-1, 1, height)[:, None]
        x = torch.linspace(-1, 1, width)[None]
        place = ((y**2 + x**2) / 2).sqrt() * (self.rings - 1)
        ring = torch.arange(self.rings).view(-1, 1, 1)
        return (1 - (place - ring).abs()).clamp_min(0)

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of the noise.

        Returns:
            The same shape, in [0, 1].
        """
        weights = self.weights(*pictures.shape[-2:]).to(pictures)
        out = torch.zeros_like(pictures)
        for weight, ring in zip(weights, self.widths(), strict=True):
            seen = [filtered(pictures[:, c : c + 1], gaussian(max(float(s), 0.2))) for c, s in enumerate(ring)]
            out = out + weight * torch.cat(seen, 1)
        if self.sigma:
            out = out + self.sigma / 255 * normal(pictures, tuple(pictures.shape), generator)
        return out.clamp(0, 1)
