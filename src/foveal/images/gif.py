"""Tell whether a GIF is whole, and whether it holds a comment.

Decoders show the frames they find: an animation that was cut off just ends sooner. Its blocks say how long each is, so
walking over them shows a cut.

Source: CompuServe, GIF89a specification.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["has_comment", "is_whole"]

EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B
COMMENT = 0xFE  # label of an extension


def is_whole(path: Path) -> bool:
    """Whether the last block of a GIF is complete; the closing mark may be missing, as many writers forget it.

    Args:
        path: a GIF file.

    Returns:
        False when the file ends inside a block, or has no picture.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return IMAGE in list(_blocks(data))
        except IndexError:
            return False


def has_comment(path: Path) -> bool:
    """Whether a GIF holds a comment.

    Args:
        path: a GIF file.

    Returns:
        True for one or more.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return any(kind == COMMENT for kind in _blocks(data))
        except IndexError:
            return False


def _blocks(data: mmap.mmap) -> Iterator[int]:
    """Kind of each block: IMAGE, or the label of an extension; an IndexError where one is cut off."""
    at = 13 + _table(data[10])
    while at < len(data) and data[at] != TRAILER:
        if data[at] == IMAGE:
            kind, start = IMAGE, at + 10 + _table(data[at + 9]) + 1
        elif data[at] == EXTENSION:
            kind, start = data[at + 1], at + 2
        else:
            return  # rubbish after the pictures, which decoders pass over
        at = _after_blocks(data, start)
        yield kind


def _table(flags: int) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: mmap.mmap, at: int) -> int:
    """Where the chain of blocks that begins here has ended."""
    while data[at]:
        at += data[at] + 1
    return at + 1
