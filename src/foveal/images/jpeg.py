"""Content of a JPEG beyond its picture that upscaling cannot keep: gain maps, previews, videos, signatures.

Source: ITU-T T.81 (segments), CIPA DC-007 (Multi-Picture Format), ISO 21496-1 (gain maps), Adobe XMP part 3 (extended
XMP), C2PA 2.1 (content credentials in JUMBF).
"""

from __future__ import annotations

import mmap
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["extras"]

# The next marker; in compressed data 255 is followed by 0 or a restart marker.
MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
ALONE = frozenset((0x01, 0xD8))
HEADS = (
    (0xE2, b"urn:iso:std:iso:ts:21496", "gain map"),
    (0xE2, b"MPF\0", "embedded pictures"),
    (0xE1, b"http://ns.adobe.com/xmp/extension/\0", "extended XMP"),
    (0xEB, b"JP", "content credentials"),
    (0xFE, b"", "comment"),
)


def extras(path: Path) -> list[str]:
    """List the content of a file that is not kept.

    Args:
        path: JPEG file.

    Returns:
        Names, each once.
    """
    found: dict[str, None] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 2
        while mark := MARKER.search(data, at):
            marker, at = data[mark.end() - 1], mark.end()
            if marker == 0xD9:
                # A picture that no segment announced; some cameras pad with zeros.
                if not found and data[at : at + 64].strip(b"\0\xff"):
                    found["data behind the picture"] = None
                break
            if marker in ALONE or at + 2 > len(data):
                continue
            length = int.from_bytes(data[at : at + 2], "big")
            for kind, head, name in HEADS:
                if marker == kind and data[at + 2 : at + 2 + len(head)] == head:
                    found[name] = None
            at += length
    return list(found)
