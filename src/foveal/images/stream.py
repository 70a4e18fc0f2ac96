"""Give libvips rows from Python, one block after the other, while it writes the file.

libvips pulls: it asks for pixels when its encoder wants them. Python pushes. Between the two stands a thread, a short
queue, and a PNG that is never compressed nor stored: PNG is the one format that libvips reads as a stream with 8 or 16
bits and one to four channels. Only a few blocks are in memory at any time, however tall the picture.
"""

from __future__ import annotations

import queue
import struct
import threading
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ._vips import vips

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["VipsSink"]

WAITING_BLOCKS = 4
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


class VipsSink:
    """Takes rows from the top and hands them to an encoder of libvips.

    Args:
        width: columns.
        height: rows of all frames together.
        channels: 1 to 4.
        deep: 16 bits instead of 8.
        save: writes the pyvips image it is given; runs in a thread.
    """

    def __init__(self, width: int, height: int, channels: int, deep: bool, save: Callable[[Any], None]) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue(WAITING_BLOCKS)
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._save = save
        self._deflate = zlib.compressobj(0)
        size = struct.pack(">IIBBBBB", width, height, 16 if deep else 8, COLOUR_TYPES[channels], 0, 0, 0)
        self._rest = memoryview(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size))
        self._ended = False
        self._thread = threading.Thread(target=self._encode, name="foveal-encoder", daemon=True)
        self._thread.start()

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows; waits while the encoder is behind.

        Args:
            block: (n, W, C), uint8 or uint16.

        Raises:
            pyvips.Error: the encoder failed.
        """
        big_endian = block.astype(">u2") if block.dtype == np.uint16 else np.ascontiguousarray(block)
        data = big_endian.reshape(len(block), -1).view(np.uint8)
        # Each line of a PNG begins with the number of its filter; 0 is none.
        lines = np.zeros((data.shape[0], data.shape[1] + 1), np.uint8)
        lines[:, 1:] = data
        self._put(_chunk(b"IDAT", self._deflate.compress(lines.data)))

    def finish(self) -> None:
        """Wait until the file is written.

        Raises:
            pyvips.Error: the encoder failed.
        """
        self._put(_chunk(b"IDAT", self._deflate.flush()) + _chunk(b"IEND", b""))
        self._put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """Stop the encoder where it stands; the file it leaves is incomplete."""
        self._stop.set()
        self._thread.join()

    def _put(self, data: bytes | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(data, timeout=0.1)
            except queue.Full:
                if self._thread.is_alive():
                    continue
            return

    def _read(self, count: int) -> memoryview | None:
        """What libvips calls for the next bytes; None is the end."""
        while not self._rest:
            if self._ended or self._stop.is_set():
                return None
            try:
                data = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if data is None:
                self._ended = True
                return None
            self._rest = memoryview(data)
        out, self._rest = self._rest[:count], self._rest[count:]
        return out

    def _encode(self) -> None:
        try:
            source = vips().SourceCustom()
            source.on_read(self._read)
            # A picture that ends early is an error here, which is how `abort` reaches the encoder.
            image = vips().Image.pngload_source(source, access="sequential", fail_on="error", unlimited=True)
            self._save(image)
        except Exception as error:  # handed to the thread that waits
            self._error = error
