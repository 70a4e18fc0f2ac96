"""JPEG as a file: encoded by libjpeg and decoded again, at a quality of 1 to 100. Not differentiable.

*Source*: ISO/IEC 10918-1; the tables are those of the Independent JPEG Group. Blocks begin at the upper left corner;
cut a border of fewer than eight pixels to have them anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.train.restore.bank._chance import checked, whole
from foveal.train.restore.degradations import encode_jpeg

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Jpeg"]


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file.

    Args:
        quality: 1 to 100.
        subsampling: of chroma, in Pillow's words: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.

    Raises:
        ValueError: a strength outside its range.
    """

    quality: int = 30
    subsampling: int = 2

    def __post_init__(self) -> None:
        checked("jpeg", quality=(self.quality, 1, 100), subsampling=(self.subsampling, 0, 2))

    @classmethod
    def draw(cls, generator: Generator) -> Jpeg:
        """Quality 10 to 95, two of three in 4:2:0.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(whole(10, 95, generator), (2, 2, 0)[whole(0, 2, generator)])

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: takes no part.

        Returns:
            The same shape; multiples of 1/255.
        """
        levels = pictures.detach().mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        back = [torch.from_numpy(encode_jpeg(one, self.quality, self.subsampling).copy()) for one in levels]
        return torch.stack(back).permute(0, 3, 1, 2).to(pictures) / 255
