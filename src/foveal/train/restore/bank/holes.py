"""Holes: rectangles, strokes and specks in which the picture is lost. Differentiable outside them.

y = x · (1 − m) + fill · m,   m in {0, 1}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.train.restore.bank._chance import between, checked, whole

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Holes"]

KINDS = ("rectangle", "strokes")


@dataclass(frozen=True)
class Holes:
    """Lost parts.

    Args:
        share: of the picture that is lost, 0 to 0.9, met to a hundredth or to one stroke.
        kind: "rectangle" for one, "strokes" for scratches of two to five pixels.
        fill: value inside, 0 to 1.

    Raises:
        ValueError: a strength outside its range, or an unknown kind.
    """

    share: float = 0.25
    kind: str = "rectangle"
    fill: float = 0.0

    def __post_init__(self) -> None:
        checked("holes", share=(self.share, 0, 0.9), fill=(self.fill, 0, 1))
        if self.kind not in KINDS:
            raise ValueError(f"holes: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    @classmethod
    def draw(cls, generator: Generator) -> Holes:
        """5 to 40 % lost, either kind.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(between(0.05, 0.4, generator), KINDS[whole(0, 1, generator)])

    def mask(self, height: int, width: int, generator: Generator) -> Tensor:
        """Where the picture is lost.

        Args:
            height: H.
            width: W.
            generator: source of places.

        Returns:
            (H, W), 1 where it is lost.
        """
        made = torch.zeros(height, width)
        if not self.share:
            return made
        if self.kind == "rectangle":
            long = between(0.7, 1.4, generator, log=True)
            rows = min(height, max(1, round(height * (self.share * long) ** 0.5)))
            columns = min(width, max(1, round(self.share * height * width / rows)))
            top, left = whole(0, height - rows, generator), whole(0, width - columns, generator)
            made[top : top + rows, left : left + columns] = 1
            return made
        while float(made.mean()) < self.share:
            wide = whole(2, 5, generator)
            y, x = between(0, height, generator), between(0, width, generator)
            angle = between(0, 6.2832, generator)
            for _ in range(whole(10, 60, generator)):
                angle += between(-0.4, 0.4, generator)
                y += float(torch.sin(torch.tensor(angle)))
                x += float(torch.cos(torch.tensor(angle)))
                top, left = max(0, round(y)), max(0, round(x))
                made[top : top + wide, left : left + wide] = 1
        return made

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of places, other ones for each picture.

        Returns:
            The same shape, in [0, 1].
        """
        batch, _, height, width = pictures.shape
        masks = torch.stack([self.mask(height, width, generator) for _ in range(batch)])[:, None].to(pictures)
        return pictures * (1 - masks) + self.fill * masks
