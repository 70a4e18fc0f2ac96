"""What a JPEG holds beyond its picture, which enlarging it cannot keep: gain maps, previews, videos, signatures.

Source: ITU-T T.81 (segments), CIPA DC-007 (Multi-Picture Format), ISO 21496-1 (gain maps), Adobe XMP part 3 (extended
XMP), C2PA 2.1 (content credentials in JUMBF).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["extras"]

ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
HEADS = (
    (0xE2, b"urn:iso:std:iso:ts:21496", "gain map"),
    (0xE2, b"MPF\0", "embedded pictures"),
    (0xE1, b"http://ns.adobe.com/xmp/extension/\0", "extended XMP"),
    (0xEB, b"JP", "content credentials"),
    (0xFE, b"", "comment"),
)


def extras(path: Path) -> list[str]:
    """What is not kept of a file.

    Args:
        path: a JPEG file.

    Returns:
        Names, each once.
    """
    found: dict[str, None] = {}
    with path.open("rb") as file:
        file.seek(2)
        while (marker := _marker(file.read(2), file)) is not None:
            if marker in ALONE:
                continue
            length = file.read(2)
            if marker in (0xDA, 0xD9) or len(length) < 2:
                break
            body = file.read(max(struct.unpack(">H", length)[0] - 2, 0))
            for kind, head, name in HEADS:
                if marker == kind and body.startswith(head):
                    found[name] = None
    return list(found)


def _marker(pair: bytes, file: BinaryIO) -> int | None:
    """The next marker; bytes of 255 before it are padding."""
    while len(pair) == 2 and pair == b"\xff\xff":
        pair = pair[1:] + file.read(1)
    return pair[1] if len(pair) == 2 and pair[0] == 0xFF else None
