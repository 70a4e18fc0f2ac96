"""Documents of several pages: how many a TIFF has, and a file for each of them.

The directories of a TIFF are walked before anything else reads the file: libvips opens it anew for each page, so a
small file of many empty pages would take minutes, and values that several entries share would be copied for each.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

from foveal.errors import FovealError
from foveal.images.tiff import CODES, SIZES, Tiff
from foveal.serve.limits import Limits, RefusedError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from foveal import images
    from foveal.runtime.restorer import Restorer
    from foveal.runtime.upscaler import Upscaler

__all__ = ["PageError", "check_document", "do_pages"]

# Most bytes of whole numbers in all directories: a picture of 50 megapixels in tiles of 16×16 has three million.
_NUMBERS = 16_000_000
_VALUES = 1_000_000_000  # most bytes of values of all pages, which may share a profile
_BELOW = (330, 34665, 34853, 40965)  # tags of directories inside: others, EXIF, GPS, interoperability


class PageError(FovealError):
    """A page that cannot be done."""


def check_document(path: Path, name: str, limits: Limits) -> None:
    """Refuse a TIFF whose directories would take too much time or memory to read.

    Args:
        path: TIFF file.
        name: the client's name of it, for errors.
        limits: limits.

    Raises:
        RefusedError: too many pages (413), or directories with more values than an honest file has (422).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            tiff, values, numbers = Tiff(data), 0, 0
            for count, at in enumerate(tiff.chain(), 1):
                if count > limits.pages:
                    raise RefusedError(
                        413, f"{name} has more than {limits.pages} pages (--max-pages); send it in parts"
                    )
                these, of_them = _values(tiff, at)
                values, numbers = values + these, numbers + of_them
                # In an honest file the values of a page have places of their own.
                if these > len(data) or values > _VALUES or numbers > _NUMBERS:
                    raise RefusedError(
                        422, f"{name}: its directories hold more than a picture needs; write it with another program"
                    )
        except (ValueError, struct.error):  # damaged; what reads it says how
            return


def _values(tiff: Tiff, page: int) -> tuple[int, int]:
    """Bytes of the values in a page's directories and in those inside, and how many of them are whole numbers."""
    values = numbers = 0
    directories, seen = [page], {0}
    while directories and len(seen) < 100:
        at = directories.pop()
        if at in seen or at > len(tiff.data) - 8:
            continue
        seen.add(at)
        for tag, kind, count, first in _entries(tiff, at):
            values += SIZES.get(kind, 0) * count
            numbers += SIZES[kind] * count if kind in CODES else 0
            if tag in _BELOW and count == 1:
                directories.append(first)
    return values, numbers


def _entries(tiff: Tiff, at: int) -> list[tuple[int, int, int, int]]:
    """Tag, type, number of values, and the first value or its place, of the entries of a directory."""
    width = struct.calcsize("=" + tiff.word)
    start = at + struct.calcsize("=" + tiff.count)
    total = min(tiff.number(tiff.count, at), 4096)
    places = range(start, min(start + total * tiff.entry, len(tiff.data) - tiff.entry + 1), tiff.entry)
    return [
        (*struct.unpack_from(tiff.order + "HH", tiff.data, place), tiff.number(tiff.word, place + 4),
         tiff.number(tiff.word, place + 4 + width))
        for place in places
    ]  # fmt: skip


def do_pages(
    worker: Upscaler | Restorer,
    source: Path,
    info: images.Info,
    targets: Sequence[Path],
    tell: Callable[[float, float], None],
) -> dict[str, Any]:
    """Make a file of each page.

    Args:
        worker: what enlarges or repairs.
        source: the document.
        info: its header.
        targets: files to write, one a page.
        tell: function called with megapixels done and in all; it may raise `StoppedError`.

    Returns:
        Plain data, as of a picture's result; width and height are those of the first page.

    Raises:
        PageError: a page that cannot be done; it names the page.
    """
    whole, done = info.total_pixels * worker.scale**2 / 1e6, 0.0
    made = []
    for page, target in enumerate(targets):

        def told(now: float, _whole: float, _region: tuple[int, int, int, int], before: float = done) -> None:
            tell(before + now, whole)

        try:
            result = worker.upscale_file(source, target, page=page, overwrite=True, progress=told)
        except StoppedError:
            raise
        except Exception as error:
            raise PageError(f"page {page + 1} of {len(targets)}: {error}") from error
        made.append(result)
        done += result.megapixels
    return {
        "width": made[0].width,
        "height": made[0].height,
        "frames": len(made),
        "pages": len(made),
        "megapixels": done,
        "seconds": sum(result.seconds for result in made),
        "bundle": _each([result.bundle for result in made]),
        "engine": _each([result.engine for result in made]),
        "threads": worker.threads,
        "notes": _by_page([result.notes for result in made]),
    }


def _each(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _by_page(notes: list[tuple[str, ...]]) -> list[str]:
    """What holds for all pages as it is, anything else with the pages that it is about."""
    where: dict[str, list[int]] = {}
    for page, some in enumerate(notes, 1):
        for note in some:
            where.setdefault(note, []).append(page)
    return [
        note if len(on) == len(notes) else f"page{'s' if len(on) > 1 else ''} {', '.join(map(str, on))}: {note}"
        for note, on in where.items()
    ]
