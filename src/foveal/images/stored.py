"""What a file stores of a picture's rows: bit depth, channels and colours, and the conversion of rows to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import colour
from .alpha import flatten
from .fit import has_alpha

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .formats import Format
    from .metadata import Metadata

__all__ = ["Stored"]


class Stored:
    """The form in which one file stores rows.

    Args:
        form: format of the file.
        channels: number of channels of the pixels that are given.
        metadata: metadata of the picture.
        frames: number of pictures in the file.
        background: background for transparent pixels in formats without alpha; see `Writer`.
    """

    def __init__(
        self,
        form: Format,
        channels: int,
        metadata: Metadata,
        *,
        frames: int = 1,
        background: int | tuple[int, int, int] | None = None,
    ) -> None:
        self._form, self._given, self._metadata, self._background = form, channels, metadata, background
        self._alpha = has_alpha(channels, metadata)
        self.deep = metadata.bits == 16 and form.deep
        if frames > 1 and form.name in ("png", "avif"):
            self.deep = False  # Pillow, which writes these animations, supports 8 bits only
        self.meaning = colour.meaning(metadata, form.name, channels)
        self._to_srgb = self._needs_srgb()
        self.channels = self._count()
        if self._to_srgb:
            self.icc = colour.srgb_profile() if form.icc and self.channels >= 3 else None
            self.meaning = self.meaning._replace(chunks=())
        else:
            self.icc = self.meaning.icc if form.icc else None

    @property
    def depth(self) -> int:
        """Bit depth for the encoder; beyond 8 only AVIF has a choice."""
        if not self.deep:
            return 8
        return self._metadata.depth if self._metadata.depth in (10, 12) else 12

    def _needs_srgb(self) -> bool:
        icc = self.meaning.icc
        if not icc:
            return False
        mismatch = (colour.space(icc) == "grey") != (self._given <= 2)
        if self._form.name in ("webp", "avif") and self._given <= 2:
            return colour.space(icc) == "grey"
        return not self._form.icc or (mismatch and self._form.name == "png") or colour.space(icc) == "cmyk"

    def _count(self) -> int:
        """Number of channels of the rows passed to the encoder."""
        more = (self._alpha and self._form.alpha) or (self._metadata.spare and self._form.name == "tiff")
        grey_becomes_colour = self._to_srgb and not self._form.grey
        colours = 3 if self._given >= 3 or grey_becomes_colour else 1
        if self._form.name == "bmp" and more:
            colours = 3
        return colours + more

    def rows(self, block: NDArray[Any]) -> NDArray[Any]:
        """Convert rows for the encoder.

        Args:
            block: rows, (n, W, C), uint8 or uint16.

        Returns:
            Rows, (n, W, `channels`), uint16 if `deep`, else uint8.
        """
        if self.deep and block.dtype == np.uint8:
            block = block.astype(np.uint16) * 257
        if self._alpha and not self._form.alpha:
            block = flatten(block, self._background)
        elif self._metadata.spare and self._form.name != "tiff":
            block = block[..., :-1]
        if self._to_srgb and self.meaning.icc:
            block = colour.rows_to_srgb(block, self.meaning.icc)
            if self.channels <= 2:
                block = np.concatenate([block[..., :1], block[..., 3:]], axis=2)
        if not self.deep and block.dtype == np.uint16:
            block = ((block.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if self.channels >= 3 and block.shape[2] <= 2:
            block = np.concatenate([np.repeat(block[..., :1], 3, axis=2), block[..., 1:]], axis=2)
        if self.deep and self._form.name == "avif":
            most = (1 << self.depth) - 1
            block = ((block.astype(np.uint32) * most + 32767) // 65535 << (16 - self.depth)).astype(np.uint16)
        return block
