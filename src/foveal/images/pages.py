"""Write documents whose pages differ in size or kind: each page is written as a TIFF and appended to the previous."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tiff
from .errors import PictureError
from .fit import refuse_unfit
from .formats import format_for
from .writer import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from .metadata import Info, Metadata
    from .reader import Reading

__all__ = ["PagesWriter", "writer_for"]


class PagesWriter:
    """Writes one document from its first page to its last; a context manager, used like `Writer`.

    Args:
        path: TIFF file to write.
        pages: size and channels of each page.
        metadata: metadata of each page.
        overwrite: whether to replace an existing file.
        background: not used, because TIFF stores transparency.

    Raises:
        PictureError: if the format cannot store these pages, the file exists, or the folder does not.
    """

    def __init__(
        self,
        path: str | Path,
        pages: Sequence[Info],
        metadata: Sequence[Metadata],
        *,
        overwrite: bool = False,
        background: int | tuple[int, int, int] | None = None,
    ) -> None:
        self.path = Path(path)
        form = format_for(path)
        for page, own in zip(pages, metadata, strict=True):
            refuse_unfit(self.path, form, page.width, page.height, page.channels, own, frames=len(pages),
                         differing=True, background=background is not None)  # fmt: skip
        raw_bytes = sum(page.width * page.height * page.channels * page.bits // 8 for page in pages)
        self._writers = [
            Writer(path, page.width, page.height, page.channels, own, overwrite=overwrite, background=background)
            for page, own in zip(pages, metadata, strict=True)
        ]
        for writer in self._writers:
            writer.raw_bytes = raw_bytes
        self._begun: list[Writer] = []

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the source has and this file does not keep, as sentences for the user; empty if all is kept."""
        return tuple(dict.fromkeys(note for writer in self._writers for note in writer.left_out))

    def __enter__(self) -> PagesWriter:
        self._begin()
        return self

    def _begin(self) -> None:
        writer = self._writers[len(self._begun)]
        self._begun.append(writer)
        writer.__enter__()

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows to the current page; the next page starts after its last row.

        Args:
            block: rows, (n, W, C), as for `Writer.rows`.

        Raises:
            ValueError: if the rows do not match the page, or are too many.
            PictureError: if writing fails.
        """
        writer = self._begun[-1]
        writer.rows(block)
        if writer.complete:
            writer.finish()
            if len(self._begun) > 1:
                try:
                    tiff.append(self._begun[0].temporary, writer.temporary)
                except OSError as error:
                    raise PictureError(self.path, f"it cannot be written ({error.strerror})",
                                       "check the space and rights on that disk") from error  # fmt: skip
                writer.give_up()
            if len(self._begun) < len(self._writers):
                self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if len(self._begun) < len(self._writers) or not self._begun[-1].complete:
                    raise ValueError(f"the document has {len(self._writers)} pages; write the rows of the others too")
                self._begun[0].put_in_place()
        finally:
            for writer in self._begun:
                writer.give_up()


def writer_for(
    reading: Reading,
    target: str | Path,
    scale: int,
    *,
    overwrite: bool = False,
    background: int | tuple[int, int, int] | None = None,
) -> Writer | PagesWriter:
    """Create the writer for an upscaled picture, for any number and sizes of frames.

    Args:
        reading: opened source.
        target: file to write; its suffix selects the format.
        scale: ratio of output side to input side.
        overwrite: whether to replace an existing file.
        background: background for transparent pixels, see `Writer`.

    Returns:
        A context manager that accepts rows.
    """
    from dataclasses import replace

    if reading.pages:
        pages = [replace(page, width=page.width * scale, height=page.height * scale) for page in reading.info.pages]
        return PagesWriter(target, pages, reading.pages, overwrite=overwrite, background=background)
    return Writer(
        target,
        reading.width * scale,
        reading.height * scale,
        reading.channels,
        reading.metadata,
        frames=reading.frames,
        overwrite=overwrite,
        background=background,
    )
