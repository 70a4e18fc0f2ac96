"""Directories of TIFF files: read them, and change what libvips cannot.

A TIFF is a chain of directories (IFDs), one per page; an entry has a tag, a type, a count and a value or the offset of
its value. EXIF has the same structure.

Source: TIFF 6.0, Adobe's TIFF Technical Notes 1 to 4, and the BigTIFF layout of libtiff.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["SIZES", "Buffer", "Entry", "Page", "Tiff", "append", "as_rgb", "pages", "set_spare"]

Buffer = bytes | bytearray | mmap.mmap

# Bytes per value of each type.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
SUBFILE, BITS, PHOTOMETRIC, SAMPLES, EXTRA = 254, 258, 262, 277, 338
# Tags whose values are offsets: of strips, tiles, EXIF, GPS and further directories.
OFFSETS, DIRECTORIES = (273, 288, 324), (330, 34665, 34853, 40965)
CIELAB, ICCLAB = 8, 9


@dataclass(frozen=True)
class Entry:
    """An entry as stored.

    Args:
        tag: tag number.
        kind: type of its values.
        count: number of its values.
        raw: values in the byte order of the file.
        where: offset of the values.
        at: offset of the entry.
    """

    tag: int
    kind: int
    count: int
    raw: bytes
    where: int
    at: int


class Tiff:
    """Reader of the directories in a buffer."""

    def __init__(self, data: Buffer) -> None:
        marks = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
        head = bytes(data[:4])
        if head not in marks:
            raise ValueError("not a TIFF structure")
        self.data = data
        self.order, self.big = marks[head]
        self.count, self.entry, self.word = ("Q", 20, "Q") if self.big else ("H", 12, "I")
        self.first: int = self.number(self.word, 8 if self.big else 4)

    def number(self, code: str, at: int) -> int:
        """One unsigned number at an offset."""
        if at > len(self.data):  # of 64 bits, which `struct` does not take
            raise ValueError(f"an offset must be inside the {len(self.data)} bytes, got {at}")
        return int(struct.unpack_from(self.order + code, self.data, at)[0])

    def entries(self, offset: int) -> Iterator[Entry]:
        """The entries of the directory at `offset`; those of unknown type or pointing outside are skipped.

        So are those after which the values would be larger than the data: in an honest directory each has a place of
        its own, and values that thousands of entries share must not be copied for each.
        """
        total = self.number(self.count, offset)
        start = offset + struct.calcsize("=" + self.count)
        width = struct.calcsize("=" + self.word)
        copied = 0
        for at in range(start, start + min(total, 4096) * self.entry, self.entry):
            tag, kind = struct.unpack_from(self.order + "HH", self.data, at)
            count = self.number(self.word, at + 4)
            size = SIZES.get(kind, 0) * count
            where = at + 4 + width if size <= width else self.number(self.word, at + 4 + width)
            if size and where + size <= len(self.data) and copied + size <= len(self.data):
                copied += size
                yield Entry(tag, kind, count, bytes(self.data[where : where + size]), where, at)

    def next_at(self, offset: int) -> int:
        """Position of the pointer to the following directory."""
        return offset + struct.calcsize("=" + self.count) + self.number(self.count, offset) * self.entry

    def integer(self, entry: Entry) -> int:
        """The first value of an integer entry."""
        return int(struct.unpack_from(self.order + CODES[entry.kind], entry.raw)[0])

    def integers(self, entry: Entry) -> tuple[int, ...]:
        """The values of an integer entry."""
        return struct.unpack_from(f"{self.order}{entry.count}{CODES[entry.kind]}", entry.raw)

    def pointed(self, entries: list[Entry], tag: int) -> list[Entry]:
        """The entries of the directory that an entry with this tag points to."""
        for entry in entries:
            if entry.tag == tag:
                return list(self.entries(self.integer(entry)))
        return []

    def chain(self) -> Iterator[int]:
        """Offsets of the directories of the pages."""
        at = self.first
        seen: set[int] = set()
        while at and at not in seen and len(seen) < 100_000:
            seen.add(at)
            yield at
            at = self.number(self.word, self.next_at(at))


@dataclass(frozen=True)
class Page:
    """Content of a page's directory.

    Args:
        photometric: photometric interpretation; 8 and 9 are Lab.
        bits: bits of the first sample.
        extra: kinds of the extra samples: 0 unspecified, 1 and 2 alpha.
        reduced: whether it is a reduced copy of another page, or a mask.
        tags: all its tags.
    """

    photometric: int
    bits: int
    extra: tuple[int, ...]
    reduced: bool
    tags: frozenset[int]


def pages(path: Path) -> list[Page]:
    """Read the directories of a file.

    Args:
        path: TIFF or BigTIFF file.

    Returns:
        One for each page that can be read; libvips reports what is wrong with the others.
    """
    found: list[Page] = []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tiff = Tiff(data)
            for at in tiff.chain():
                entries = {entry.tag: entry for entry in tiff.entries(at)}
                numbers = {tag: entry for tag, entry in entries.items() if entry.kind in CODES}

                def first(tag: int, default: int, numbers: dict[int, Entry] = numbers, tiff: Tiff = tiff) -> int:
                    return tiff.integer(numbers[tag]) if tag in numbers else default

                reduced = bool(first(SUBFILE, 0) & 5)
                extra = tiff.integers(numbers[EXTRA]) if EXTRA in numbers and numbers[EXTRA].count < 100 else ()
                found.append(Page(first(PHOTOMETRIC, 1), first(BITS, 1), extra, reduced, frozenset(entries)))
    except (ValueError, KeyError, struct.error, OSError):
        return found
    return found


def as_rgb(path: Path) -> bytes:
    """A copy of the file in which Lab pages are declared RGB, so that libvips returns the raw samples.

    Args:
        path: TIFF or BigTIFF file.

    Returns:
        The whole file.
    """
    data = bytearray(path.read_bytes())
    tiff = Tiff(data)
    for at in tiff.chain():
        for entry in tiff.entries(at):
            if entry.tag == PHOTOMETRIC and tiff.integer(entry) in (CIELAB, ICCLAB):
                struct.pack_into(tiff.order + "H", data, entry.where, 2)
    return bytes(data)


def set_spare(path: Path) -> None:
    """Declare every page's extra sample as unspecified, and so not alpha.

    Args:
        path: TIFF or BigTIFF file, changed in place.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        tiff = Tiff(data)
        for at in tiff.chain():
            for entry in tiff.entries(at):
                if entry.tag == EXTRA:
                    struct.pack_into(tiff.order + "H", data, entry.where, 0)


def append(path: Path, more: Path) -> None:
    """Append the pages of one file to another.

    The whole second file is appended to the first, every offset in it is shifted, and the last directory of the first
    is linked to it.

    Args:
        path: TIFF or BigTIFF file, changed in place.
        more: second file, of the same byte order and layout.
    """
    moved = bytearray(more.read_bytes())
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as data:
            tiff = Tiff(data)
            base = len(data) + -len(data) % 8
            other = Tiff(moved)
            if (tiff.order, tiff.big) != (other.order, other.big):
                raise ValueError("pages of one TIFF must have the same byte order and layout")
            start = other.first
            for at in list(other.chain()):
                _move(other, moved, at, base)
            last = list(tiff.chain())[-1]
            struct.pack_into(tiff.order + tiff.word, data, tiff.next_at(last), base + start)
        file.seek(base)
        file.write(moved)


def _move(tiff: Tiff, data: bytearray, directory: int, base: int) -> None:
    """Add `base` to every offset of a directory and of those it points to."""
    width = struct.calcsize("=" + tiff.word)
    for entry in list(tiff.entries(directory)):
        if entry.tag in DIRECTORIES:
            for below in tiff.integers(entry):
                _move(tiff, data, below, base)
        if entry.tag in OFFSETS + DIRECTORIES:
            values = [value + base for value in tiff.integers(entry)]
            struct.pack_into(f"{tiff.order}{len(values)}{CODES[entry.kind]}", data, entry.where, *values)
        if len(entry.raw) > width:
            struct.pack_into(tiff.order + tiff.word, data, entry.at + 4 + width, entry.where + base)
    link = tiff.next_at(directory)
    following = tiff.number(tiff.word, link)
    if following:
        struct.pack_into(tiff.order + tiff.word, data, link, following + base)
