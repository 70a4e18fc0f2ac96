"""Keep Adobe's XMP packet from telling lies about a picture that was turned or enlarged."""

from __future__ import annotations

import re

__all__ = ["resized", "upright"]


def upright(packet: bytes) -> bytes:
    """Set the orientation to 1, wherever the packet names one.

    Args:
        packet: XMP in UTF-8.

    Returns:
        The packet.
    """
    return _set(packet, rb"tiff:Orientation", b"1")


def resized(packet: bytes, width: int, height: int) -> bytes:
    """Set the sizes in pixels, wherever the packet names them.

    Args:
        packet: XMP in UTF-8.
        width: in pixels.
        height: in pixels.

    Returns:
        The packet.
    """
    for name, value in ((rb"exif:PixelXDimension", width), (rb"tiff:ImageWidth", width)):
        packet = _set(packet, name, b"%d" % value)
    for name, value in ((rb"exif:PixelYDimension", height), (rb"tiff:ImageLength", height)):
        packet = _set(packet, name, b"%d" % value)
    return packet


def _set(packet: bytes, name: bytes, value: bytes) -> bytes:
    # A simple property is written as an attribute or as an element; both are common.
    packet = re.sub(rb"(\b%s\s*=\s*[\"'])\d+([\"'])" % name, rb"\g<1>%s\g<2>" % value, packet)
    return re.sub(rb"(<%s>\s*)\d+(\s*</%s>)" % (name, name), rb"\g<1>%s\g<2>" % value, packet)
