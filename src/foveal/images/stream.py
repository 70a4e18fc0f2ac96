"""Stream rows from Python to libvips, block by block, while it writes the file.

libvips pulls: it requests pixels when its encoder needs them. Python pushes. They are connected by a thread, a pipe and
an uncompressed PNG that is never stored: PNG is the only format that libvips reads as a stream with 8 or 16 bits and
one to four channels. Only what libvips' encoder holds is in memory, whatever the height of the picture.

A pipe instead of a callback, because a callback would run Python in libvips' own threads (see `_vips.vips`).
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
    """Receiver of a file's rows."""

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows, (n, W, C)."""
        ...

    def finish(self) -> None:
        """Complete the file."""
        ...

    def abort(self) -> None:
        """Abandon the file."""
        ...


class VipsSink:
    """Passes rows from the top to an encoder of libvips.

    Args:
        width: number of columns.
        height: number of rows of all frames together.
        channels: number of channels, 1 to 4.
        deep: whether samples have 16 bits instead of 8.
        save: function that writes a pyvips image; runs in a thread.
    """

    def __init__(self, width: int, height: int, channels: int, deep: bool, save: Callable[[Any], None]) -> None:
        self._save = save
        self._error: Exception | None = None
        self._deflate = zlib.compressobj(0)
        self._read_end, self._write_end = os.pipe()
        # Non-blocking, so that a failed encoder is detected instead of waited for.
        os.set_blocking(self._write_end, False)
        self._open = True
        self._thread = threading.Thread(target=self._encode, name="foveal-encoder", daemon=True)
        self._thread.start()
        size = struct.pack(">IIBBBBB", width, height, 16 if deep else 8, COLOUR_TYPES[channels], 0, 0, 0)
        self._send(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size))

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows; blocks while the encoder is behind.

        Args:
            block: rows, (n, W, C), uint8 or uint16.

        Raises:
            pyvips.Error: if the encoder failed.
        """
        big_endian = block.astype(">u2") if block.dtype == np.uint16 else np.ascontiguousarray(block)
        data = big_endian.reshape(len(block), -1).view(np.uint8)
        # Each row of a PNG starts with its filter type; 0 is none.
        lines = np.zeros((data.shape[0], data.shape[1] + 1), np.uint8)
        lines[:, 1:] = data
        self._send(chunk(b"IDAT", self._deflate.compress(lines.data)))

    def finish(self) -> None:
        """Wait until the file is written.

        Raises:
            pyvips.Error: if the encoder failed.
        """
        self._send(chunk(b"IDAT", self._deflate.flush()) + chunk(b"IEND", b""))
        self._close()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """Stop the encoder; the file it leaves is incomplete."""
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
                break  # the encoder has stopped: it failed, or has all it needs
        if rest:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _encode(self) -> None:
        source = image = None
        try:
            source = vips().Source.new_from_descriptor(self._read_end)
            # A picture that ends early is an error here, which is how `abort` stops the encoder.
            image = vips().Image.pngload_source(source, access="sequential", fail_on="error", unlimited=True)
            self._save(image)
        except Exception as error:
            # Without its traceback, which would keep the image alive, and with it the other end of the pipe.
            self._error = error.with_traceback(None)
        finally:
            del image, source
            os.close(self._read_end)
