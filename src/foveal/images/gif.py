"""Check whether a GIF is complete, and whether it contains a comment.

Decoders show the frames they find: a truncated animation just ends sooner. Each block gives its length, so walking over
the blocks reveals a truncation.

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
COMMENT = 0xFE  # label of the comment extension


def is_whole(path: Path) -> bool:
    """Whether the last block of a GIF is complete; the trailer may be missing, since many writers omit it.

    Args:
        path: GIF file.

    Returns:
        False if the file ends inside a block or has no picture.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return IMAGE in list(_blocks(data))
        except IndexError:
            return False


def has_comment(path: Path) -> bool:
    """Whether a GIF contains a comment.

    Args:
        path: GIF file.

    Returns:
        True if there is at least one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return any(kind == COMMENT for kind in _blocks(data))
        except IndexError:
            return False


def _blocks(data: mmap.mmap) -> Iterator[int]:
    """Type of each block: IMAGE, or the label of an extension; raises IndexError at a truncated block."""
    at = 13 + _table(data[10])
    while at < len(data) and data[at] != TRAILER:
        if data[at] == IMAGE:
            kind, start = IMAGE, at + 10 + _table(data[at + 9]) + 1
        elif data[at] == EXTENSION:
            kind, start = data[at + 1], at + 2
        else:
            return  # garbage after the pictures, which decoders ignore
        at = _after_blocks(data, start)
        yield kind


def _table(flags: int) -> int:
    """Size in bytes of the colour table given by these flags."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: mmap.mmap, at: int) -> int:
    """End of the chain of sub-blocks that starts here."""
    while data[at]:
        at += data[at] + 1
    return at + 1
