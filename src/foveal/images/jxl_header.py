"""Read the header of a JPEG XL file: size, samples, channels and colours, without decoding.

Decoders give a picture only, and a few bytes may promise a picture of gigapixels; the limits need its size first.

Source: ISO/IEC 18181-1 (codestream: size, metadata and colour headers), 18181-2 (boxes).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cicp import Cicp

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Header", "boxes", "codestream", "read_header"]

CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
# Offset and number of bits of each of the four ways to store a number.
Ways = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
_SIDE: Ways = ((1, 9), (1, 13), (1, 18), (1, 30))
_PREVIEW_SIDE: Ways = ((1, 6), (65, 8), (321, 10), (1345, 12))
_PREVIEW_EIGHTHS: Ways = ((16, 0), (32, 0), (1, 5), (33, 9))
_ENUM: Ways = ((0, 0), (1, 0), (2, 4), (18, 6))
_BITS: Ways = ((8, 0), (10, 0), (12, 0), (1, 6))
_FLOAT_BITS: Ways = ((32, 0), (16, 0), (24, 0), (1, 6))
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ALPHA, _SPOT, _BLACK, _CFA = 0, 2, 4, 5
_GREY, _D65, _CUSTOM = 1, 1, 2
_PRIMARIES = {1: 1, 9: 9, 11: 12}  # as in H.273; with white D65 the DCI primaries are those of Display P3
_TRANSFERS = (1, 8, 13, 16, 17, 18)


SRGB = Cicp(1, 13)


@dataclass(frozen=True)
class Header:
    """Content of a header.

    Args:
        width: number of columns after applying the orientation.
        height: number of rows after applying the orientation.
        bits: bits of a sample.
        depth_at: bit of the codestream at which the number of bits is stored; 0 if it is not.
        floating: whether samples are floating-point numbers.
        grey: whether there is one colour channel.
        alpha: whether there is transparency.
        premultiplied: whether colours are multiplied by it.
        others: names of further channels.
        animated: whether it is an animation; nothing after it is read then.
        xyb: whether it is stored in the lossy colour space XYB.
        profiled: whether the colours are given by an ICC profile.
        cicp: colours as code points; None if they have none, or are given by a profile.
    """

    width: int
    height: int
    bits: int = 8
    depth_at: int = 0
    floating: bool = False
    grey: bool = False
    alpha: bool = False
    premultiplied: bool = False
    others: tuple[str, ...] = ()
    animated: bool = False
    xyb: bool = True
    profiled: bool = False
    cicp: Cicp | None = SRGB


class _Bits:
    """Reads bits, least significant first.

    Args:
        data: bytes to read.
    """

    def __init__(self, data: bytes) -> None:
        self.value, self.at, self.end = int.from_bytes(data, "little"), 0, 8 * len(data)

    def take(self, count: int) -> int:
        if self.at + count > self.end:
            raise ValueError("the header is cut off")
        value = self.value >> self.at & (1 << count) - 1
        self.at += count
        return value

    def number(self, ways: Ways) -> int:
        offset, count = ways[self.take(2)]
        return offset + self.take(count)


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Boxes of a container.

    Args:
        data: a whole file.

    Yields:
        Type, start and end of the content; a bare codestream as one box "jxlc".
    """
    if not data.startswith(CONTAINER):
        yield b"jxlc", 0, len(data)
        return
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        inside = at + 8
        if size == 1 and at + 16 <= len(data):
            (size,), inside = struct.unpack_from(">Q", data, inside), at + 16
        end = len(data) if size == 0 else at + size
        if end < inside:
            return
        yield kind, inside, min(end, len(data))
        at = end


def codestream(data: bytes) -> bytes:
    """The codestream of a file, whose parts may stand between other boxes.

    Args:
        data: a whole file.

    Returns:
        The codestream, with its signature.

    Raises:
        ValueError: if there is none.
    """
    parts = [data[inside + 4 * (kind == b"jxlp") : end] for kind, inside, end in boxes(data)
             if kind in (b"jxlc", b"jxlp")]  # fmt: skip
    joined = parts[0] if len(parts) == 1 else b"".join(parts)
    if not joined.startswith(b"\xff\x0a"):
        raise ValueError("it has no codestream")
    return joined


def read_header(data: bytes) -> Header:
    """Read a header.

    Args:
        data: a whole file.

    Returns:
        Its content.

    Raises:
        ValueError: if it is cut off or has no codestream.
    """
    bits = _Bits(codestream(data)[2:4096])
    width, height = _size(bits)
    if bits.take(1):  # everything else is as usual
        return Header(width, height)
    turned = 1
    if bits.take(1):
        turned = 1 + bits.take(3)
        if bits.take(1):
            _size(bits)  # intended size of display
        if bits.take(1):
            _preview(bits)
        if bits.take(1):
            return Header(width, height, animated=True)
    if turned >= 5:
        width, height = height, width
    depth_at = bits.at + 1
    depth, floating = _depth(bits)
    bits.take(1)  # whether buffers of 16 bits are enough
    channels = [_channel(bits) for _ in range(bits.number(((0, 0), (1, 0), (2, 4), (1, 12))))]
    alpha = [kind for kind in channels if kind[0] == "alpha"]
    xyb = bool(bits.take(1))
    grey, profiled, code = _colours(bits)
    return Header(
        width,
        height,
        depth,
        depth_at + 16,
        floating,
        grey,
        bool(alpha),
        bool(alpha) and alpha[0][1],
        tuple(name for name, _ in channels if name != "alpha"),
        False,
        xyb,
        profiled,
        code,
    )


def _size(bits: _Bits) -> tuple[int, int]:
    eighths = bits.take(1)
    height = 8 * (1 + bits.take(5)) if eighths else bits.number(_SIDE)
    if ratio := bits.take(3):
        above, below = _RATIOS[ratio - 1]
        return height * above // below, height
    return (8 * (1 + bits.take(5)) if eighths else bits.number(_SIDE)), height


def _preview(bits: _Bits) -> None:
    ways = _PREVIEW_EIGHTHS if bits.take(1) else _PREVIEW_SIDE
    bits.number(ways)
    if not bits.take(3):
        bits.number(ways)


def _depth(bits: _Bits) -> tuple[int, bool]:
    if bits.take(1):
        depth = bits.number(_FLOAT_BITS)
        bits.take(4)
        return depth, True
    return bits.number(_BITS), False


def _channel(bits: _Bits) -> tuple[str, bool]:
    """Name of a further channel, and whether it is alpha by which the colours are multiplied."""
    if bits.take(1):
        return "alpha", False
    kind = bits.number(_ENUM)
    _depth(bits)
    bits.number(((0, 0), (3, 0), (4, 0), (1, 3)))
    for _ in range(bits.number(((0, 0), (0, 4), (16, 5), (48, 10)))):
        bits.take(8)
    if kind == _ALPHA:
        return "alpha", bool(bits.take(1))
    if kind == _SPOT:
        bits.take(4 * 16)
    if kind == _CFA:
        bits.number(((1, 0), (0, 2), (3, 4), (19, 8)))
    names = {1: "depth map", _SPOT: "spot colour", 3: "selection", _BLACK: "black ink", _CFA: "colour filter array",
             6: "thermal channel"}  # fmt: skip
    return names.get(kind, "further channel"), False


def _colours(bits: _Bits) -> tuple[bool, bool, Cicp | None]:
    """Whether it is grey, whether it has a profile, and its code points."""
    if bits.take(1):
        return False, False, SRGB
    profiled = bool(bits.take(1))
    space = bits.number(_ENUM)
    grey = space == _GREY
    if profiled or space > _GREY:
        return grey, profiled, None
    known, primaries = bits.number(_ENUM) == _D65, 1
    if not known:
        return grey, False, None
    if not grey:
        stored = bits.number(_ENUM)
        if stored not in _PRIMARIES:
            return grey, False, None
        primaries = _PRIMARIES[stored]
    if bits.take(1):  # a gamma
        return grey, False, None
    transfer = bits.number(_ENUM)
    return grey, False, Cicp(primaries, transfer) if transfer in _TRANSFERS else None
