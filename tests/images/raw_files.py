"""A tiny DNG of known colours, byte by byte: one strip of 16-bit samples, a Bayer mosaic, and the tags needed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLACK, WHITE = 256, 4095
# XYZ under D65 to linear sRGB, IEC 61966-2-1.
TO_SRGB = np.array(
    [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]],
)
NEUTRAL = (0.5, 1.0, 0.8)  # what the sensor makes of white
CROSSTALK = np.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.25, 0.75]])  # of its colours, before that


def _entry(tag: int, kind: int, values: bytes, count: int) -> tuple[int, int, int, bytes]:
    return tag, kind, count, values


def _short(tag: int, *values: int) -> tuple[int, int, int, bytes]:
    return _entry(tag, 3, struct.pack(f"<{len(values)}H", *values), len(values))


def _long(tag: int, *values: int) -> tuple[int, int, int, bytes]:
    return _entry(tag, 4, struct.pack(f"<{len(values)}I", *values), len(values))


def _text(tag: int, text: str) -> tuple[int, int, int, bytes]:
    return _entry(tag, 2, text.encode() + b"\0", len(text) + 1)


def _ratio(tag: int, *values: float, signed: bool = False) -> tuple[int, int, int, bytes]:
    pairs = [n for value in values for n in (round(value * 10000), 10000)]
    return _entry(tag, 10 if signed else 5, struct.pack(f"<{len(pairs)}{'i' if signed else 'I'}", *pairs), len(values))


def _directory(entries: list[tuple[int, int, int, bytes]], at: int) -> bytes:
    """A directory that begins at an offset, its values behind it."""
    table, values = b"", b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, kind, count, data in sorted(entries):
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place = struct.pack("<I", behind + len(values))
            values += data + b"\0" * (len(data) % 2)
        table += struct.pack("<HHI", tag, kind, count) + place
    return struct.pack("<H", len(entries)) + table + bytes(4) + values


def mosaic(linear: NDArray, light: Sequence[float] = (1, 1, 1)) -> NDArray[np.uint16]:
    """What the sensor sees.

    Args:
        linear: linear sRGB, (H, W, 3), in [0, 1].
        light: colour of the light, in the sensor's own colours.

    Returns:
        RGGB samples, (H, W).
    """
    seen = np.clip(linear @ CROSSTALK.T * np.array(NEUTRAL) * np.array(light), 0, 1) * (WHITE - BLACK) + BLACK
    made = seen[..., 1].copy()
    made[::2, ::2], made[1::2, 1::2] = seen[::2, ::2, 0], seen[1::2, 1::2, 2]
    return made.round().astype(np.uint16)


def write_dng(
    path: Path,
    linear: NDArray,
    *,
    orientation: int = 1,
    matrix: bool = True,
    exposure: float = 0.0,
    light: Sequence[float] = (1, 1, 1),
    xmp: bytes = b"",
    late: bool = False,
) -> Path:
    """Write a DNG.

    Args:
        path: file to write.
        linear: linear sRGB, (H, W, 3), in [0, 1].
        orientation: EXIF orientation.
        matrix: whether the file says how its colours become XYZ.
        exposure: baseline exposure, stops.
        light: colour of the light, in the sensor's own colours, which the camera notes as its white.
        xmp: packet of XMP.
        late: whether the directories stand behind the samples.

    Returns:
        The path.
    """
    samples = mosaic(linear, light)
    height, width = samples.shape
    strip = samples.astype("<u2").tobytes()
    camera = [_ratio(33434, 0.01), _short(34855, 400), _text(36867, "2026:01:02 03:04:05")]

    def root(shot: int, data: int) -> list[tuple[int, int, int, bytes]]:
        found = [
            _long(254, 0), _long(256, width), _long(257, height), _short(258, 16), _short(259, 1), _short(262, 32803),
            _text(270, "a walk"), _text(271, "Nobody"), _text(272, "Box 1"), _long(273, data), _short(274, orientation),
            _short(277, 1), _long(278, height), _long(279, len(strip)), _short(284, 1), _short(33421, 2, 2),
            _entry(33422, 1, bytes((0, 1, 1, 2)), 4), _long(34665, shot), _entry(50706, 1, bytes((1, 4, 0, 0)), 4),
            _entry(50707, 1, bytes((1, 1, 0, 0)), 4), _text(50708, "Nobody Box 1"), _long(50714, BLACK),
            _long(50717, WHITE), _ratio(50728, *(np.array(NEUTRAL) * light)), _ratio(50730, exposure, signed=True),
            _short(50778, 21), _entry(51009, 7, bytes(4), 4),
        ]  # fmt: skip
        if matrix:
            found.append(_ratio(50721, *(np.diag(NEUTRAL) @ CROSSTALK @ TO_SRGB).ravel(), signed=True))
        if xmp:
            found.append(_entry(700, 1, xmp, len(xmp)))
        return found

    if late:  # the directories behind the samples
        shot = 8 + len(strip)
        first, data = shot + len(_directory(camera, shot)), 8
        parts = [strip, _directory(camera, shot), _directory(root(shot, data), first)]
    else:
        first = 8
        shot = first + len(_directory(root(0, 0), first))
        data = shot + len(_directory(camera, shot))
        parts = [_directory(root(shot, data), first), _directory(camera, shot), strip]
    path.write_bytes(b"II*\0" + struct.pack("<I", first) + b"".join(parts))
    return path
