"""Write BMP files row by row.

Pillow writes BMP too, but needs the whole picture at once and drops alpha. The format is a header and rows from the
bottom up, each padded to four bytes, so the offset of each row is known and rows can be written from the top.

Source: Microsoft's BITMAPINFOHEADER and BITMAPV4HEADER.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["BmpSink", "file_size"]


def _layout(width: int, channels: int) -> tuple[int, int, int]:
    """Bits per pixel, bytes per row, offset of the pixels."""
    bits = {1: 8, 3: 24, 4: 32}[channels]
    stride = (width * bits // 8 + 3) // 4 * 4
    return bits, stride, {8: 14 + 40 + 1024, 24: 14 + 40, 32: 14 + 108}[bits]


def file_size(width: int, height: int, channels: int) -> int:
    """Size of the file, which the format limits to less than 2³² bytes.

    Args:
        width: number of columns.
        height: number of rows.
        channels: 1, 3 or 4.

    Returns:
        Number of bytes.
    """
    _, stride, offset = _layout(width, channels)
    return offset + stride * height


class BmpSink:
    """Takes rows from the top and writes each at its offset.

    Args:
        path: file to write.
        width: number of columns.
        height: number of rows.
        channels: 1 grey, 3 RGB, 4 RGB and alpha.
        dpi: dots per inch, horizontal and vertical.
    """

    def __init__(self, path: Path, width: int, height: int, channels: int, dpi: tuple[float, float]) -> None:
        bits, self.stride, self.offset = _layout(width, channels)
        self.width, self.height, self.done = width, height, 0
        per_metre = [round(value / 0.0254) for value in dpi]
        size = file_size(width, height, channels)
        info = struct.pack(
            "<iiHHIIiiII", width, height, 1, bits, 3 if bits == 32 else 0, self.stride * height, *per_metre,
            256 if bits == 8 else 0, 0,
        )  # fmt: skip
        if bits == 32:  # masks of red, green, blue and alpha; colour space sRGB
            info += struct.pack("<IIII4s", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs") + bytes(48)
        palette = b"".join(bytes((i, i, i, 0)) for i in range(256)) if bits == 8 else b""
        self.file = path.open("wb")
        self.file.write(struct.pack("<2sIHHI", b"BM", size, 0, 0, self.offset) + struct.pack("<I", len(info) + 4))
        self.file.write(info + palette)

    def rows(self, block: NDArray[np.uint8]) -> None:
        """Append rows.

        Args:
            block: rows, (n, W, C).
        """
        count = len(block)
        if block.shape[2] > 1:
            block = block[..., [2, 1, 0, 3][: block.shape[2]]]
        lines = np.zeros((count, self.stride), np.uint8)
        flat = block[::-1].reshape(count, -1)
        lines[:, : flat.shape[1]] = flat
        self.file.seek(self.offset + (self.height - self.done - count) * self.stride)
        self.file.write(lines.tobytes())
        self.done += count

    def finish(self) -> None:
        """Close the finished file."""
        self.file.close()

    def abort(self) -> None:
        """Close the incomplete file without flushing: buffered data may not fit on the disk and are not needed."""
        with suppress(OSError):
            self.file.close()
