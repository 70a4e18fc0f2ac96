"""EXIF: extract it from any file, update it after rotating and upscaling, and insert it into TIFF files.

EXIF is a small TIFF structure: directories (IFDs) of entries, each with a tag, a type, a count and a value or its
offset. Changes are made in place where possible, because maker notes contain their own offsets, which break if anything
moves.

Source: CIPA DC-008 (EXIF 2.32), TIFF 6.0, and the BigTIFF layout of libtiff.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

from .tiff import SIZES, Entry, Tiff

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["dpi", "from_tiff", "into_tiff", "orientation", "resized", "upright"]

ORIENTATION, EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x0112, 0x8769, 0x8825, 0xA005
XRESOLUTION, YRESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
THUMBNAIL, THUMBNAIL_LENGTH = 0x0201, 0x0202
WIDTHS, HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
# Size of the units that byte order applies to: a rational is two longs.
UNITS = {**SIZES, 5: 4, 10: 4}
# Tags of a TIFF's first directory that describe the picture and not the storage of its pixels.
DESCRIPTIVE = frozenset(
    (269, 270, 271, 272, 285, 305, 306, 315, 316, 18246, 18249, 33432, 50341, *tuple(range(40091, 40096)))
)


def orientation(blob: bytes) -> int:
    """The rotation that the pixels need.

    Args:
        blob: EXIF, with or without its `Exif` prefix.

    Returns:
        1 (upright) to 8; 1 if it is missing or the data are damaged.
    """
    try:
        tiff = Tiff(_bare(blob))
        found = [tiff.integer(entry) for entry in tiff.entries(tiff.first) if entry.tag == ORIENTATION]
    except (ValueError, KeyError, struct.error):
        return 1
    return found[0] if found and 1 <= found[0] <= 8 else 1


def dpi(blob: bytes) -> tuple[float, float] | None:
    """The resolution stored in EXIF.

    Args:
        blob: EXIF, with or without its `Exif` prefix.

    Returns:
        Dots per inch, horizontal and vertical, or None.
    """
    try:
        tiff = Tiff(_bare(blob))
        raw = {entry.tag: entry for entry in tiff.entries(tiff.first)}
        pairs = [struct.unpack_from(tiff.order + "II", raw[tag].raw) for tag in (XRESOLUTION, YRESOLUTION)]
        unit = 2.54 if RESOLUTION_UNIT in raw and tiff.integer(raw[RESOLUTION_UNIT]) == 3 else 1.0
        across, down = (unit * over / under for over, under in pairs)
    except (ValueError, KeyError, struct.error, ZeroDivisionError):
        return None
    return (across, down) if across > 0 and down > 0 else None


def upright(blob: bytes) -> bytes | None:
    """Set the orientation to 1 and remove the thumbnail, which shows the picture before the change.

    Args:
        blob: EXIF, with or without its `Exif` prefix.

    Returns:
        EXIF without prefix, or None if the data are damaged.
    """
    data = bytearray(_bare(blob))
    try:
        tiff = Tiff(data)
        for entry in tiff.entries(tiff.first):
            if entry.tag == ORIENTATION:
                struct.pack_into(tiff.order + "HIHH", data, entry.at + 2, 3, 1, 1, 0)
        link = tiff.next_at(tiff.first)
        second = tiff.number("I", link) if link + 4 <= len(data) else 0
        if second:
            struct.pack_into(tiff.order + "I", data, link, 0)
            _erase_thumbnail(tiff, data, second)
    except (ValueError, KeyError, struct.error):
        return None
    return bytes(data)


def _erase_thumbnail(tiff: Tiff, data: bytearray, directory: int) -> None:
    """Zero the thumbnail's bytes, and truncate them if they are at the end of the data, as is usual."""
    try:
        entries = {entry.tag: entry for entry in tiff.entries(directory)}
        start, length = (tiff.integer(entries[tag]) for tag in (THUMBNAIL, THUMBNAIL_LENGTH))
    except (KeyError, struct.error):
        return
    end = min(start + length, len(data))
    if start < 8 or start >= end:
        return
    data[start:end] = bytes(end - start)
    if end >= len(data) - 2:
        del data[start:]


def resized(blob: bytes, width: int, height: int) -> bytes:
    """Update the tags with the size in pixels; missing tags are not added.

    Args:
        blob: EXIF without prefix.
        width: width in pixels.
        height: height in pixels.

    Returns:
        EXIF of the same length.
    """
    data = bytearray(blob)
    try:
        tiff = Tiff(data)
        entries = list(tiff.entries(tiff.first))
        for entry in entries + tiff.pointed(entries, EXIF_IFD):
            if entry.tag in WIDTHS + HEIGHTS:
                struct.pack_into(tiff.order + "HII", data, entry.at + 2, 4, 1, width if entry.tag in WIDTHS else height)
    except (ValueError, KeyError, struct.error):
        return blob
    return bytes(data)


def from_tiff(path: Path) -> bytes | None:
    """Collect EXIF from a TIFF file, where it is spread over the file's directories.

    Args:
        path: TIFF or BigTIFF file.

    Returns:
        EXIF without prefix, or None if there is none.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tiff = Tiff(data)
            root = list(tiff.entries(tiff.first))
            exif = tiff.pointed(root, EXIF_IFD)
            directories = (root, exif, tiff.pointed(root, GPS_IFD), tiff.pointed(exif, INTEROP_IFD))
            order = tiff.order
    except (ValueError, KeyError, struct.error, OSError):
        return None
    root = [entry for entry in root if entry.tag in DESCRIPTIVE]
    if not any((root, *directories[1:])):
        return None
    body, first = _build(
        root, *directories[1:], source=order, target=order, base=8, big=False, verbatim=[], following=0
    )
    return {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", first) + body


def into_tiff(path: Path, blob: bytes) -> None:
    """Insert EXIF into a TIFF file: append an extended first directory and point the header to it.

    Args:
        path: TIFF or BigTIFF file, changed in place.
        blob: EXIF without prefix.
    """
    try:
        source = Tiff(blob)
        root = list(source.entries(source.first))
        exif = source.pointed(root, EXIF_IFD)
        gps, interop = source.pointed(root, GPS_IFD), source.pointed(exif, INTEROP_IFD)
    except (ValueError, KeyError, struct.error):
        return
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tiff = Tiff(data)
            present = list(tiff.entries(tiff.first))
            verbatim = [(entry.tag, bytes(data[entry.at : entry.at + tiff.entry])) for entry in present]
            following = tiff.number(tiff.word, tiff.next_at(tiff.first))
            base = len(data) + len(data) % 8
            order, big = tiff.order, tiff.big
        tags = {tag for tag, _ in verbatim}
        root = [entry for entry in root if entry.tag in DESCRIPTIVE and entry.tag not in tags]
        body, first = _build(root, exif, gps, interop, source=source.order, target=order, base=base, big=big,
                             verbatim=verbatim, following=following)  # fmt: skip
        file.seek(base)
        file.write(body)
        file.seek(8 if big else 4)
        file.write(struct.pack(order + ("Q" if big else "I"), first))


def _build(
    root: list[Entry],
    exif: list[Entry],
    gps: list[Entry],
    interop: list[Entry],
    *,
    source: str,
    target: str,
    base: int,
    big: bool,
    verbatim: list[tuple[int, bytes]],
    following: int,
) -> tuple[bytes, int]:
    """Lay out four directories from offset `base`: the bytes, and the offset of the first directory."""
    out = bytearray()
    word, width = ("Q", 8) if big else ("I", 4)

    def directory(entries: list[Entry], pointers: dict[int, int], more: list[tuple[int, bytes]], after: int) -> int:
        lines = dict(more)
        for tag, offset in pointers.items():
            lines[tag] = struct.pack(target + "HH" + word * 2, tag, 16 if big else 4, 1, offset)
        for entry in entries:
            if entry.tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD):
                continue
            raw = entry.raw if source == target else _turned(entry)
            if len(raw) > width:
                value = struct.pack(target + word, base + len(out))
                out.extend(raw + bytes(-len(raw) % 8))
            else:
                value = raw.ljust(width, b"\0")
            lines[entry.tag] = struct.pack(target + "HH" + word, entry.tag, entry.kind, entry.count) + value
        start = base + len(out)
        out.extend(struct.pack(target + ("Q" if big else "H"), len(lines)))
        out.extend(b"".join(lines[tag] for tag in sorted(lines)) + struct.pack(target + word, after))
        out.extend(bytes(-len(out) % 8))
        return start

    pointers = {INTEROP_IFD: directory(interop, {}, [], 0)} if interop else {}
    pointers = {EXIF_IFD: directory(exif, pointers, [], 0)} if exif else {}
    if gps:
        pointers[GPS_IFD] = directory(gps, {}, [], 0)
    first = directory(root, pointers, verbatim, following)
    return bytes(out), first


def _turned(entry: Entry) -> bytes:
    """An entry's value in the other byte order."""
    unit = UNITS[entry.kind]
    return b"".join(entry.raw[i : i + unit][::-1] for i in range(0, len(entry.raw), unit))


def _bare(blob: bytes) -> bytes:
    return blob[6:] if blob[:6] == b"Exif\0\0" else blob
