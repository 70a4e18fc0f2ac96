"""Writing in a thread of its own, so that compressing one band and computing the next go together."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.images import PagesWriter, Writer

__all__ = ["BackgroundWriter"]


class BackgroundWriter:
    """Gives bands to a writer in the background; an error of the writer is raised by the next call.

    Args:
        writer: writer of the bands. Nobody else may use it until this is left.
    """

    def __init__(self, writer: Writer | PagesWriter) -> None:
        self._writer = writer
        self._bands: queue.Queue[NDArray | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._work, name="foveal-writer", daemon=True)

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error what still waits is thrown away; the writer removes what was written.
        self._stop = kind is not None
        while True:
            try:
                self._bands.put(None)
                self._thread.join()
                break
            except KeyboardInterrupt as error:
                # The writer may only be closed once its thread is done with it.
                self._stop = True
                self._error = error
        if kind is None and self._error is not None:
            raise self._error

    def rows(self, band: NDArray) -> None:
        """Give a band to the writer; waits while another is still waiting.

        Args:
            band: rows, (n, W, C).
        """
        if self._error is not None:
            raise self._error
        self._bands.put(band)

    def _work(self) -> None:
        while (band := self._bands.get()) is not None:
            if self._error is None and not self._stop:
                try:
                    self._writer.rows(band)
                except BaseException as error:  # handed to the thread that waits
                    self._error = error
