"""Keep Adobe's XMP packet from telling lies about a picture that was turned or enlarged.

Source: Adobe XMP Specification parts 1 to 3; Adobe Gain Map 1.0; Google's Ultra HDR Image Format 1.1, Motion Photo 1.0
and Dynamic Depth 1.0.
"""

from __future__ import annotations

import re

__all__ = ["orphans_removed", "resized", "upright"]

# Properties that describe or point at bytes behind the picture: namespace, names (any, where empty), what they are of.
_POINTERS = (
    (rb"http://ns\.adobe\.com/hdr-gain-map/1\.0/", rb"", "gain map"),
    (rb"http://ns\.apple\.com/HDRGainMap/1\.0/", rb"", "gain map"),
    (rb"http://ns\.apple\.com/pixeldatainfo/1\.0/", rb"", "gain map"),
    (rb"http://ns\.google\.com/photos/1\.0/camera/", rb"MicroVideo\w*|MotionPhoto\w*", "motion photo's video"),
    (rb"http://ns\.google\.com/photos/1\.0/(?:image|depthmap|focus)/", rb"", "depth map"),
    (rb"http://ns\.google\.com/photos/dd/1\.0/\w+/", rb"", "depth map"),
    (rb"http://ns\.google\.com/photos/1\.0/audio/", rb"", "sound"),
    (rb"http://ns\.adobe\.com/xmp/note/", rb"HasExtendedXMP", "extended XMP"),
)
_CONTAINER = rb"http://ns\.google\.com/photos/(?:1\.0|dd/1\.0)/container/(?:item/)?"
_SEMANTICS = {b"GainMap": "gain map", b"MotionPhoto": "motion photo's video", b"Depth": "depth map"}


def orphans_removed(packet: bytes) -> tuple[bytes, list[str]]:
    """Take out the properties that point at what lies behind the picture in its file and is not kept.

    Args:
        packet: XMP in UTF-8.

    Returns:
        The packet, and names of what its properties were of.
    """
    lost: dict[str, None] = {}
    for prefix in _prefixes(packet, _CONTAINER):
        for directory in re.findall(rb"<%s:Directory\b.*?</%s:Directory>" % (prefix, prefix), packet, re.S):
            lost |= {
                what: None for sign, what in _SEMANTICS.items() if re.search(rb"Semantic[^\w]+%s" % sign, directory)
            }
        packet = _without(packet, prefix, rb"\w+")
    for namespace, names, what in _POINTERS:
        for prefix in _prefixes(packet, namespace):
            before, packet = packet, _without(packet, prefix, names or rb"\w+")
            if packet != before:
                lost[what] = None
    return packet, list(lost)


def _prefixes(packet: bytes, namespace: bytes) -> list[bytes]:
    """The prefixes that stand for a namespace, each once."""
    return list(dict.fromkeys(re.findall(rb"xmlns:([\w.-]+)\s*=\s*[\"']%s[\"']" % namespace, packet)))


def _without(packet: bytes, prefix: bytes, names: bytes) -> bytes:
    """A packet without some properties, be they written as attributes or as elements."""
    packet = re.sub(rb"\s+%s:(?:%s)\s*=\s*(?:\"[^\"]*\"|'[^']*')" % (prefix, names), b"", packet)
    start = rb"\s*<(%s:(?:%s))" % (prefix, names)
    packet = re.sub(start + rb"(?=[\s>/])[^>]*(?<!/)>.*?</\1\s*>", b"", packet, flags=re.S)
    packet = re.sub(start + rb"(?=[\s>/])[^>]*/>", b"", packet)
    if not re.search(rb"[\s</]%s:" % prefix, packet):
        packet = re.sub(rb"\s+xmlns:%s\s*=\s*(?:\"[^\"]*\"|'[^']*')" % prefix, b"", packet)
    return packet


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
