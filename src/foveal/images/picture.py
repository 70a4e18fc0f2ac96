"""A picture in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .metadata import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Picture"]


@dataclass(frozen=True, eq=False)
class Picture:
    """Upright pixels in grey or RGB, with their metadata.

    Args:
        pixels: pixels, (H, W, C), uint8 or uint16; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        alpha: whether the last of 2 or 4 channels is alpha, straight (not premultiplied). False if `metadata.spare` is
            set.
        metadata: everything else.

    Raises:
        ValueError: if the array or `alpha` does not fit this description.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    alpha: bool
    metadata: Metadata = field(default_factory=Metadata)

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or not 1 <= shape[2] <= 4 or 0 in shape:
            raise ValueError(f"pixels must be (H, W, C) with 1 to 4 channels and not empty, got shape {shape}")
        if dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, got {dtype}; scale and round other values first")
        expected = shape[2] in (2, 4) and not self.metadata.spare
        if self.alpha != expected:
            kind = " with a spare one (metadata.spare)" if self.metadata.spare else ""
            raise ValueError(f"alpha must be {expected} for {shape[2]} channels{kind}, got {self.alpha}")

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Number of rows."""
        return int(self.pixels.shape[0])

    @property
    def channels(self) -> int:
        """Number of channels, including alpha."""
        return int(self.pixels.shape[2])
