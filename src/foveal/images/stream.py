"""Give libvips rows from Python, one block after the other, while it writes the file.

libvips pulls: it asks for pixels when its encoder wants them. Python pushes. Between the two stand a thread, a pipe and
a PNG that is neither compressed nor stored: PNG is the one format that libvips reads as a stream with 8 or 16 bits and
one to four channels. Only what libvips' encoder holds is in memory, however tall the picture.

A pipe and no callback, because a callback would run Python in libvips' own threads (see `_vips.vips`).
"""

from __future__ import annotations

import os
import select
import struct
import threading
import zlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ._vips import vips
from .png_chunks import chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Sink", "VipsSink"]

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


class Sink(Protocol):
    """What takes a file's rows."""

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows (n, W, C)."""
        ...

    def finish(self) -> None:
        """Complete the file."""
        ...

    def abort(self) -> None:
        """Give up."""
        ...


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
        self._save = save
        self._error: Exception | None = None
        self._deflate = zlib.compressobj(0)
        self._read_end, self._write_end = os.pipe()
        # Not blocking, so that an encoder that has failed is noticed instead of waited for.
        os.set_blocking(self._write_end, False)
        self._open = True
        self._thread = threading.Thread(target=self._encode, name="foveal-encoder", daemon=True)
        self._thread.start()
        size = struct.pack(">IIBBBBB", width, height, 16 if deep else 8, COLOUR_TYPES[channels], 0, 0, 0)
        self._send(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size))

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
        self._send(chunk(b"IDAT", self._deflate.compress(lines.data)))

    def finish(self) -> None:
        """Wait until the file is written.

        Raises:
            pyvips.Error: the encoder failed.
        """
        self._send(chunk(b"IDAT", self._deflate.flush()) + chunk(b"IEND", b""))
        self._close()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """Stop the encoder where it stands; the file it leaves is incomplete."""
        self._close()
        self._thread.join()

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._write_end)

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        waiting = select.poll()
        waiting.register(self._write_end, select.POLLOUT)
        while rest and self._thread.is_alive():
            try:
                rest = rest[os.write(self._write_end, rest) :]
            except BlockingIOError:
                waiting.poll(100)
            except BrokenPipeError:
                break  # the encoder has stopped: it has failed, or has all it needs
        if rest:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _encode(self) -> None:
        source = image = None
        try:
            source = vips().Source.new_from_descriptor(self._read_end)
            # A picture that ends early is an error here, which is how `abort` reaches the encoder.
            image = vips().Image.pngload_source(source, access="sequential", fail_on="error", unlimited=True)
            self._save(image)
        except Exception as error:
            # Without its traceback, which would keep the image alive, and with it the pipe's other end.
            self._error = error.with_traceback(None)
        finally:
            del image, source
            os.close(self._read_end)
