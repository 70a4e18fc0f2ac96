"""The bins of a JPEG file: which pictures a file may come from, and the nearest of them to any picture. Differentiable.

A plane of 8×8 blocks has the coefficients c = D x Dᵀ, D being the orthonormal cosine transform of type II; a file keeps
q = round(c / s), s being the steps of its table. The pictures that give the same file are a box, (q ± ½) s, in which a
picture is put by a clamp of its coefficients: as D is orthonormal, no picture of the box is nearer. A margin keeps
coefficients off the edges, where rounding errors would decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BLOCK", "JpegBins", "coefficients", "compressed", "pixels"]

BLOCK = 8
MIDDLE = 128.0  # level that is coded as 0
MARGIN = 1e-2  # of a step


def _transform(like: Tensor) -> Tensor:
    """D, (8, 8)."""
    order = torch.arange(BLOCK, dtype=torch.float64)
    matrix = torch.cos(math.pi / BLOCK * (order + 0.5) * order[:, None]) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)


def coefficients(planes: Tensor) -> Tensor:
    """Cosine transform of each block.

    Args:
        planes: (B, C, H, W) in [0, 1], both sides multiples of 8.

    Returns:
        In levels of 255, (B, C, H / 8, W / 8, 8, 8).

    Raises:
        ValueError: sides that are not multiples of 8.
    """
    height, width = planes.shape[-2:]
    if height % BLOCK or width % BLOCK:
        raise ValueError(f"both sides must be multiples of {BLOCK}, got {height}×{width}; pad as the encoder would")
    matrix = _transform(planes)
    blocks = (255 * planes - MIDDLE).unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    return matrix @ blocks @ matrix.T


def pixels(values: Tensor) -> Tensor:
    """Inverse of `coefficients`.

    Args:
        values: (B, C, H / 8, W / 8, 8, 8).

    Returns:
        (B, C, H, W).
    """
    matrix = _transform(values)
    blocks = matrix.T @ values @ matrix
    return ((blocks + MIDDLE) / 255).transpose(3, 4).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class JpegBins:
    """What a JPEG file says of its picture.

    Args:
        indices: q, whole numbers, (B, C, H / 8, W / 8, 8, 8).
        steps: s, of each picture and plane, (B, C, 8, 8).
    """

    indices: Tensor
    steps: Tensor

    @property
    def decoded(self) -> Tensor:
        """The middles of the bins as pixels, (B, C, H, W), before rounding and clipping to 8 bits."""
        return pixels(self.indices * self.steps[:, :, None, None])

    def requantized(self, planes: Tensor) -> Tensor:
        """Indices that the same table gives another picture.

        Args:
            planes: (B, C, H, W).

        Returns:
            Whole numbers, (B, C, H / 8, W / 8, 8, 8).
        """
        return (coefficients(planes) / self.steps[:, :, None, None]).round()

    def projected(self, planes: Tensor) -> Tensor:
        """The nearest picture that gives the same file.

        Args:
            planes: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        steps, half = self.steps[:, :, None, None], 0.5 - MARGIN
        return pixels(coefficients(planes).clamp((self.indices - half) * steps, (self.indices + half) * steps))


def compressed(planes: Tensor, steps: Tensor) -> JpegBins:
    """Code pictures.

    Args:
        planes: (B, C, H, W) in [0, 1].
        steps: (B, C, 8, 8), at least 1 level.

    Returns:
        Their bins.
    """
    return JpegBins((coefficients(planes) / steps[:, :, None, None]).round(), steps)
