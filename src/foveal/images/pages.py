"""Write documents whose pages differ in size or kind: each page is a TIFF of its own, put behind those before it."""

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
    """Writes one document from its first page to its last; a context manager, used as `Writer` is.

    Args:
        path: to write; a TIFF.
        pages: size and channels of each page.
        metadata: of each page.
        overwrite: replace a file that exists.
        background: not used, because TIFF holds transparency.

    Raises:
        PictureError: the format cannot hold these pages, the file exists, or the folder does not.
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
        """What the source has and this file has not, as sentences for the user; empty if all is kept."""
        return tuple(dict.fromkeys(note for writer in self._writers for note in writer.left_out))

    def __enter__(self) -> PagesWriter:
        self._begin()
        return self

    def _begin(self) -> None:
        writer = self._writers[len(self._begun)]
        self._begun.append(writer)
        writer.__enter__()

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows of the page that is being written; the next page begins with the rows behind its last.

        Args:
            block: (n, W, C), as `Writer.rows` takes them.

        Raises:
            ValueError: rows of another kind, or more than the page has.
            PictureError: the file cannot be written on.
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
                    raise ValueError(f"the document has {len(self._writers)} pages; add the rows of the rest")
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
    """What writes an enlarged picture: frame after frame, whatever their number and sizes.

    Args:
        reading: of the source.
        target: to write; its suffix names the format.
        scale: output side over input side.
        overwrite: replace a file that exists.
        background: see `Writer`.

    Returns:
        A context manager that takes rows.
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
