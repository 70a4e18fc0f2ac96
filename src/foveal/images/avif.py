"""Read the colour signalling (nclx) of an AVIF file, and add it to a file that libvips wrote.

The colours are given in a `colr` box of type `nclx`, or else in the sequence header of the AV1 stream. libvips writes
no such box, so that every result would be taken for sRGB. The box is added to the list of properties and associated
with the main picture; everything after it moves by its length, and the table of offsets is updated.

Source: ISO/IEC 14496-12 (boxes), 23008-12 (items and properties), 23000-22 (MIAF); AV1 Bitstream & Decoding Process
Specification, clause 5.5; AV1 Codec ISO Media File Format Binding.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from .cicp import UNSPECIFIED, Cicp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["colours", "set_colours"]

# Boxes that contain boxes, with the number of bytes before the first of them.
HOLDERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8,
           b"av01": 78}  # fmt: skip
AS_WRITTEN = 6  # BT.601, libheif's default if a stream names no matrix


def _boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Type, start, start of the content, and end of each box."""
    at = start
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        inside = at + 8
        if size == 1 and at + 16 <= end:
            (size,), inside = struct.unpack_from(">Q", data, at + 8), at + 16
        stop = end if size == 0 else at + size
        if stop > end or stop < inside:
            return
        yield kind, at, inside, stop
        at = stop


def _all(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """The same, including nested boxes."""
    for kind, at, inside, stop in _boxes(data, start, end):
        yield kind, at, inside, stop
        if kind in HOLDERS:
            yield from _all(data, inside + HOLDERS[kind], stop)


def _find(data: bytes | bytearray, *path: bytes) -> tuple[int, int, int]:
    """The box at the end of a path: start, start of the content, end."""
    box = (0, 0, len(data))
    for kind in path:
        found = [(at, inside, stop) for name, at, inside, stop in _boxes(data, *box[1:]) if name == kind]
        if not found:
            raise ValueError(f"no box {kind.decode()} in this AVIF")
        at, inside, stop = found[0]
        box = (at, inside + HOLDERS.get(kind, 0), stop)
    return box


def _main(data: bytes | bytearray) -> int:
    """Item number of the main picture."""
    _, inside, _ = _find(data, b"meta", b"pitm")
    return int(struct.unpack_from(">I" if data[inside] else ">H", data, inside + 4)[0])


def _properties(data: bytes | bytearray, item: int) -> tuple[list[int], int, int, int]:
    """Indices of a picture's properties, from 1; offset of their count, end of the list, and bytes per index."""
    _, at, _ = _find(data, b"meta", b"iprp", b"ipma")
    version, wide = data[at], data[at + 3] & 1
    (count,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    for _ in range(count):
        (found,) = struct.unpack_from(">I" if version else ">H", data, at)
        at += 4 if version else 2
        counter, size = at, 2 if wide else 1
        numbers = [
            int.from_bytes(data[i : i + size], "big") & (0x7FFF if wide else 0x7F)
            for i in range(at + 1, at + 1 + data[at] * size, size)
        ]
        at += 1 + len(numbers) * size
        if found == item:
            return numbers, counter, at, size
    raise ValueError("the main picture of this AVIF has no properties")


def colours(path: Path) -> Cicp | None:
    """The colours that a file declares.

    Args:
        path: AVIF file.

    Returns:
        The code points; None if there are none, or none that can be read.
    """
    try:
        data = path.read_bytes()
        return _colours(data)
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _colours(data: bytes) -> Cicp | None:
    _, start, end = _find(data, b"meta", b"iprp", b"ipco")
    listed = list(_boxes(data, start, end))
    numbers, *_ = _properties(data, _main(data))
    own = [listed[number - 1] for number in numbers if 0 < number <= len(listed)]
    for kind, _, inside, stop in own:
        if kind == b"colr" and data[inside : inside + 4] == b"nclx" and stop - inside >= 11:
            return _nclx(data, inside)
    for kind, _, inside, stop in own:
        if kind == b"av1C" and (said := _sequence(data[inside + 4 : stop])):
            return said
    # Some encoders write the sequence header only with the pixel data.
    for place in _places(data):
        if place.item == _main(data) and place.method == 0 and place.extents:
            start = place.base + place.extents[0][1]
            return _sequence(data[start : start + 4096])
    return None


def _nclx(data: bytes | bytearray, inside: int) -> Cicp:
    primaries, transfer, matrix, full = struct.unpack_from(">HHHB", data, inside + 4)
    return Cicp(primaries, transfer, matrix, full >> 7)


class _Bits:
    """Reads bits, most significant first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self.data[self.at >> 3] >> 7 - (self.at & 7) & 1
            self.at += 1
        return value

    def number(self) -> int:
        """An unsigned variable-length number (uvlc), prefixed by as many zeros as it has bits after the first."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return 0 if zeros >= 32 else self.take(zeros) + (1 << zeros) - 1


def _sequence(units: bytes) -> Cicp | None:
    """The colours in the first AV1 sequence header among these units."""
    start = 0
    while start < len(units):
        bits = _Bits(units[start:])
        bits.take(1)
        kind, extended, sized = bits.take(4), bits.take(1), bits.take(1)
        bits.take(1 + 8 * extended)
        size, shift, more = 0, 0, sized
        while more:
            more = bits.take(1)
            size |= bits.take(7) << shift
            shift += 7
        if kind == 1:
            return _sequence_header(bits)
        if not sized:
            return None
        start += bits.at // 8 + size
    return None


def _sequence_header(bits: _Bits) -> Cicp:
    profile = bits.take(3)
    bits.take(1)
    reduced = bits.take(1)
    if reduced:
        bits.take(5)
    else:
        _skip_operating_points(bits)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    bits.take(across + down)
    if not reduced and bits.take(1):
        bits.take(7)
    bits.take(3)  # superblocks of 128, filter and edges within frames
    if not reduced:
        bits.take(4)
        ordered = bits.take(1)
        bits.take(2 * ordered)
        force = 2 if bits.take(1) else bits.take(1)
        if force and not bits.take(1):
            bits.take(1)
        bits.take(3 * ordered)
    bits.take(3)  # superresolution, CDEF, restoration
    return _colour_config(bits, profile)


def _skip_operating_points(bits: _Bits) -> None:
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.number()
        if bits.take(1):
            raise ValueError("a decoder model, which pictures do not have")
    delays = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delays and bits.take(1):
            bits.take(4)


def _colour_config(bits: _Bits, profile: int) -> Cicp:
    deep = bits.take(1)
    if profile == 2 and deep:
        bits.take(1)
    grey = 0 if profile == 1 else bits.take(1)
    primaries, transfer, matrix = (
        (bits.take(8), bits.take(8), bits.take(8)) if bits.take(1) else (UNSPECIFIED, UNSPECIFIED, UNSPECIFIED)
    )
    # For sRGB stored as RGB the range is not signalled: it is full.
    full = 1 if not grey and (primaries, transfer, matrix) == (1, 13, 0) else bits.take(1)
    return Cicp(primaries, transfer, matrix, full)


def set_colours(path: Path, code: Cicp) -> None:
    """Declare the colours of a file; its encoding (matrix and range) stays as it was written.

    Args:
        path: AVIF file, changed in place.
        code: code points, of which primaries and transfer are used.
    """
    data = bytearray(path.read_bytes())
    said = False
    for kind, _, inside, _ in list(_all(data, 0, len(data))):
        if kind == b"colr" and data[inside : inside + 4] == b"nclx":
            struct.pack_into(">HH", data, inside + 4, code.primaries, code.transfer)
            said = True
    if not said:
        written = _colours(bytes(data)) or Cicp(1, 13, AS_WRITTEN, 1)
        matrix = AS_WRITTEN if written.matrix == UNSPECIFIED else written.matrix
        data = _with_box(data, Cicp(code.primaries, code.transfer, matrix, written.full_range))
    path.write_bytes(data)


def _with_box(data: bytearray, code: Cicp) -> bytearray:
    """The file with one more property for its main picture."""
    box = struct.pack(">I4s4sHHHB", 19, b"colr", b"nclx", *code[:3], code.full_range << 7)
    _, start, end = _find(data, b"meta", b"iprp", b"ipco")
    number = sum(1 for _ in _boxes(data, start, end)) + 1
    _, counter, last, size = _properties(data, _main(data))
    if number > (0x7FFF if size == 2 else 0x7F) or data[counter] == 255:
        raise ValueError("this AVIF has no room for another property")
    grown = len(box) + size
    _move(data, grown, behind=_find(data, b"meta")[2])
    for path in ((b"meta",), (b"meta", b"iprp")):
        _grow(data, _find(data, *path)[0], grown)
    _grow(data, _find(data, b"meta", b"iprp", b"ipma")[0], size)
    _grow(data, _find(data, b"meta", b"iprp", b"ipco")[0], len(box))
    data[counter] += 1
    # From the end, so that earlier offsets stay valid.
    for at, piece in sorted(((last, number.to_bytes(size, "big")), (end, box)), reverse=True):
        data[at:at] = piece
    return data


def _grow(data: bytearray, at: int, by: int) -> None:
    struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + by)


class _Place(NamedTuple):
    """Location of a picture's data: (position of the offset field, offset) of each part, relative to `base`."""

    item: int
    method: int
    base_at: int
    base: int
    extents: list[tuple[int, int]]


def _places(data: bytes | bytearray) -> list[_Place]:
    _, at, _ = _find(data, b"meta", b"iloc")
    version = data[at]
    offset_size, length_size = data[at + 4] >> 4, data[at + 4] & 15
    base_size, index_size = data[at + 5] >> 4, data[at + 5] & 15 if version else 0
    wide = 4 if version == 2 else 2
    at += 6

    def take(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    found = []
    for _ in range(take(wide)):
        item = take(wide)
        method = take(2) & 15 if version else 0
        take(2)
        base_at, base = at, take(base_size)
        extents = []
        for _ in range(take(2)):
            take(index_size)
            extents.append((at, take(offset_size)))
            take(length_size)
        found.append(_Place(item, method, base_at, base, extents))
    return found


def _move(data: bytearray, by: int, *, behind: int) -> None:
    """Add to the offsets of everything after the description."""
    _, at, _ = _find(data, b"meta", b"iloc")
    offset_size, base_size = data[at + 4] >> 4, data[at + 5] >> 4
    for place in _places(data):
        if place.method or not place.extents or place.base + place.extents[0][1] < behind:
            continue
        if place.base:
            data[place.base_at : place.base_at + base_size] = (place.base + by).to_bytes(base_size, "big")
        else:
            for where, offset in place.extents:
                data[where : where + offset_size] = (offset + by).to_bytes(offset_size, "big")
