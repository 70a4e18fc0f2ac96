"""How coarse a JPEG is: the level of a quality, of a quantisation table, and of a file's header. NumPy only.

A level is the step of the luminance table as a multiple of that of quality 50 of the Independent JPEG Group's scale: 0
for quality 100, 0.5 for 75, 1 for 50, 2 for 25.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LUMINANCE_TABLE", "jpeg_file_level", "jpeg_level", "jpeg_quality", "jpeg_table", "table_level"]

# ITU-T T.81, table K.1: steps of luminance, quality 50 of the Independent JPEG Group's scale.
LUMINANCE_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
BLOCK = 8
# Coefficients in which multiples are looked for: the lower ones, which are seldom 0.
LOW = np.array([(u, v) for d in range(1, 7) for u in range(BLOCK) for v in range(BLOCK) if u + v == d])


def jpeg_level(quality: float) -> float:
    """Step of the luminance table of a JPEG quality, as a multiple of quality 50's.

    Args:
        quality: of the Independent JPEG Group's scale, 1 to 100.

    Returns:
        0 for 100, 0.5 for 75, 1 for 50, 2 for 25.
    """
    return 2 - quality / 50 if quality >= 50 else 50 / quality


def jpeg_quality(level: float) -> float:
    """The quality whose luminance table has these steps: the inverse of `jpeg_level`.

    Args:
        level: at least 0.

    Returns:
        At most 100.
    """
    return 100 - 50 * level if level <= 1 else 50 / level


def jpeg_table(quality: int) -> NDArray[np.float32]:
    """The luminance table that most programs write for a quality.

    Args:
        quality: 1 to 100.

    Returns:
        Steps, (8, 8).
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip(np.floor((LUMINANCE_TABLE * percent + 50) / 100), 1, 255)


def table_level(table: NDArray) -> float:
    """Level of a luminance table, the usual one or a camera's or editor's own.

    Args:
        table: steps, (8, 8).

    Returns:
        As `jpeg_level`; for a table of another shape, by its steps at low frequencies.
    """
    low = (LOW[:, 0], LOW[:, 1])
    level = float(table[low].sum() / LUMINANCE_TABLE[low].sum())
    near = [q for q in range(1, 101) if np.array_equal(jpeg_table(q), table)]
    return jpeg_level(near[0]) if near else level


def jpeg_file_level(data: bytes) -> float | None:
    """Level of a JPEG file.

    Args:
        data: the file, or its beginning up to where the picture's data start.

    Returns:
        As `jpeg_level`; None where it is no JPEG, or states no table for luminance.
    """
    if data[:2] != b"\xff\xd8":
        return None
    tables: dict[int, NDArray] = {}
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # a byte that fills
            at += 1
            continue
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers without a length
            at += 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        part = data[at + 4 : at + 2 + size]
        if kind == 0xDB:
            tables |= _tables(part)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and len(part) >= 9:
            return table_level(tables[part[8]]) if part[8] in tables else None
        if kind in (0xD9, 0xDA):
            break
        at += 2 + size
    return table_level(tables[0]) if 0 in tables else None


def _tables(part: bytes) -> dict[int, NDArray]:
    """Quantisation tables of a segment of a JPEG file, by their numbers."""
    found: dict[int, NDArray] = {}
    while part:
        size = 128 if part[0] >> 4 else 64
        steps = np.frombuffer(part[1 : 1 + size], ">u2" if size == 128 else np.uint8)
        if len(steps) < 64:
            break
        table = np.empty((BLOCK, BLOCK), np.float32)
        table[_zigzag()] = steps
        found[part[0] & 15] = table
        part = part[1 + size :]
    return found


def _zigzag() -> tuple[list[int], list[int]]:
    """Rows and columns of a block's coefficients in the order of a file."""
    places = [(u, v) for u in range(BLOCK) for v in range(BLOCK)]
    places.sort(key=lambda p: (p[0] + p[1], p[0] if (p[0] + p[1]) % 2 else p[1]))
    return [u for u, _ in places], [v for _, v in places]
