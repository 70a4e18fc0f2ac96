"""Colour signalling without an ICC profile: CICP (AVIF's nclx, PNG's cICP), gAMA and cHRM.

Upscaling does not change the meaning of values, so it must be written again: in the format's own way if it has one, or
else as an ICC profile built from it. PQ and HLG, the HDR curves, have no profile that readers agree on: they can be
written to AVIF and PNG only.

Source: ITU-T H.273 (07/2024), tables 2 to 4; ICC.1:2010 (profile version 4.3), clauses 8 to 10.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Cicp", "from_chunks", "name", "plain", "profile", "profile_of_chunks"]


class Cicp(NamedTuple):
    """Code points of H.273.

    Args:
        primaries: colour primaries; 1 is BT.709 and sRGB, 9 BT.2020, 12 Display P3.
        transfer: transfer function; 13 is sRGB, 16 PQ, 18 HLG.
        matrix: matrix coefficients; 0 is RGB.
        full_range: 1 if black is 0 and white the largest value.
    """

    primaries: int
    transfer: int
    matrix: int = 0
    full_range: int = 1


D65 = (0.3127, 0.3290)
# Chromaticities x and y of red, green, blue and white.
PRIMARIES: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65),
}
# Parametric curve of ICC: function type and parameters. BT.709 and similar map to sRGB, as viewers display them.
Curve = tuple[int, tuple[float, ...]]
SRGB: Curve = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
TRANSFERS: dict[int, Curve] = {1: SRGB, 6: SRGB, 13: SRGB, 14: SRGB, 15: SRGB, 4: (0, (2.2,)), 5: (0, (2.8,)),
                               8: (0, (1.0,)), 17: (0, (2.6,))}  # fmt: skip
NAMES = {16: "PQ", 18: "HLG"}
UNSPECIFIED = 2
# Bradford cone responses, for the adaptation of white to the D50 of ICC profiles.
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1.0, 0.8249])


def _known(code: Cicp) -> Cicp:
    """The same, with sRGB for unspecified values."""
    return code._replace(
        primaries=1 if code.primaries == UNSPECIFIED else code.primaries,
        transfer=13 if code.transfer == UNSPECIFIED else code.transfer,
    )


def plain(code: Cicp | None) -> bool:
    """Whether pixels with these code points are displayed correctly as sRGB, without signalling.

    Args:
        code: code points of the pixels, or None.

    Returns:
        True for sRGB and what viewers treat as such.
    """
    if code is None:
        return True
    known = _known(code)
    return known.primaries == 1 and TRANSFERS.get(known.transfer) is SRGB


def name(code: Cicp) -> str:
    """A readable name of these colours.

    Args:
        code: code points of the pixels.

    Returns:
        "PQ (HDR)", "HLG (HDR)" or the numbers.
    """
    if code.transfer in NAMES:
        return f"{NAMES[code.transfer]} (HDR)"
    return f"CICP {code.primaries}/{code.transfer}"


def profile(code: Cicp, *, grey: bool = False) -> bytes | None:
    """Build an ICC profile for these code points.

    Args:
        code: code points of the pixels.
        grey: whether the pixels are grey.

    Returns:
        The profile, or None for PQ, HLG and code points that H.273 does not define.
    """
    known = _known(code)
    if known.primaries not in PRIMARIES or known.transfer not in TRANSFERS:
        return None
    return _profile(PRIMARIES[known.primaries], TRANSFERS[known.transfer], grey=grey)


def from_chunks(chunks: Sequence[tuple[bytes, bytes]]) -> Cicp | None:
    """The code points in PNG's cICP chunk.

    Args:
        chunks: type and data of each chunk.

    Returns:
        The code points, or None.
    """
    for kind, data in chunks:
        if kind == b"cICP" and len(data) == 4:
            return Cicp(*data)
    return None


def profile_of_chunks(chunks: Sequence[tuple[bytes, bytes]], *, grey: bool = False) -> bytes | None:
    """Build an ICC profile for PNG's gAMA and cHRM.

    Args:
        chunks: type and data of each chunk.
        grey: whether the pixels are grey.

    Returns:
        The profile; None if they describe sRGB or are missing.
    """
    found = dict(chunks)
    gamma, points = found.get(b"gAMA", b""), found.get(b"cHRM", b"")
    if b"sRGB" in found or (len(gamma) != 4 and len(points) != 32):
        return None
    corners, curve = PRIMARIES[1], SRGB
    if len(points) == 32:
        white, *colours = ((x / 1e5, y / 1e5) for x, y in struct.iter_unpack(">II", points))
        if min(y for _, y in (white, *colours)) <= 0:
            return None
        corners = (*colours, white)
    if len(gamma) == 4:
        (value,) = struct.unpack(">I", gamma)
        if not value:
            return None
        # 1/2.2 denotes sRGB in this chunk.
        curve = SRGB if abs(value - 45455) <= 50 else (0, (1e5 / value,))
    near = np.abs(np.subtract(corners, PRIMARIES[1])).max() < 0.002
    if curve is SRGB and (near or grey):
        return None
    return _profile(corners, curve, grey=grey)


def _xyz(point: tuple[float, float]) -> NDArray[np.float64]:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _profile(corners: tuple[tuple[float, float], ...], curve: Curve, *, grey: bool) -> bytes | None:
    """A version 4 display profile with a matrix and one curve, or the curve alone for grey."""
    *colours, white = (_xyz(point) for point in corners)
    columns = np.stack(colours, axis=1)
    if abs(np.linalg.det(columns)) < 1e-6:
        return None
    cones = BRADFORD @ white
    adapt = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / cones) @ BRADFORD
    matrix = adapt @ columns @ np.diag(np.linalg.solve(columns, white))

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    def words(text: str) -> bytes:
        raw = text.encode("utf-16-be")
        return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(raw), 28) + raw

    kind, parameters = curve
    bend = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + fixed(*parameters)
    tags = {b"desc": words("made from the picture's colour tags"), b"cprt": words("No copyright, use freely"),
            b"wtpt": b"XYZ " + bytes(4) + fixed(*D50), b"chad": b"sf32" + bytes(4) + fixed(*adapt.ravel())}  # fmt: skip
    if grey:
        tags[b"kTRC"] = bend
    else:
        for letter, column in zip(b"rgb", matrix.T, strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*column)
            tags[bytes([letter]) + b"TRC"] = bend
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag, at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x04300000, b"mntr", b"GRAY" if grey else b"RGB ",
                       b"XYZ ")  # fmt: skip
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
