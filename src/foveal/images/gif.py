"""Tell whether a GIF is whole.

Decoders show the frames they find: an animation that was cut off just ends sooner. Its blocks say how long each is, so
walking over them shows a cut.

Source: CompuServe, GIF89a specification.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_whole"]

EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B


def is_whole(path: Path) -> bool:
    """Whether the last block of a GIF is complete; the closing mark may be missing, as many writers forget it.

    Args:
        path: a GIF file.

    Returns:
        False when the file ends inside a block, or has no picture.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            at = 13 + _table(data[10])
            frames = 0
            while at < len(data) and data[at] != TRAILER:
                if data[at] == IMAGE:
                    at = _after_blocks(data, at + 10 + _table(data[at + 9]) + 1)
                    frames += 1
                elif data[at] == EXTENSION:
                    at = _after_blocks(data, at + 2)
                else:
                    break  # rubbish after the pictures, which decoders pass over
        except IndexError:
            return False
    return frames > 0


def _table(flags: int) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: mmap.mmap, at: int) -> int:
    """Where the chain of blocks that begins here has ended."""
    while data[at]:
        at += data[at] + 1
    return at + 1
