"""Animated PNG and AVIF, which Pillow writes from all frames at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .metadata import Metadata

__all__ = ["AnimationSink"]


class AnimationSink:
    """Collects all frames, then writes the file.

    Args:
        path: file to write.
        format_: "png" or "avif".
        frames: number of frames.
        height: rows of a frame.
        metadata: metadata to write; PNG's texts are inserted afterwards, byte for byte.
        quality: quality for AVIF, 1 to 100.
    """

    def __init__(
        self, path: Path, format_: str, frames: int, height: int, metadata: Metadata, quality: int | None
    ) -> None:
        self.path, self.format, self.frames, self.height = path, format_, frames, height
        self.metadata, self.quality = replace(metadata, comments=()), quality
        self.blocks: list[NDArray[Any]] = []

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows.

        Args:
            block: rows, (n, W, C).
        """
        self.blocks.append(block)

    def finish(self) -> None:
        """Write the file."""
        from .pillow import write_animation

        rows = np.concatenate(self.blocks)
        frames = list(rows.reshape(self.frames, self.height, *rows.shape[1:]))
        write_animation(self.path, self.format, frames, self.metadata, self.quality)

    def abort(self) -> None:
        """Discard the frames."""
        self.blocks.clear()
