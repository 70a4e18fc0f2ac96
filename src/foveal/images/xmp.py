"""Keep Adobe's XMP packet correct for a picture that was rotated or upscaled.

Source: Adobe XMP Specification parts 1 to 3; Adobe Gain Map 1.0; Google's Ultra HDR Image Format 1.1, Motion Photo 1.0
and Dynamic Depth 1.0.
"""

from __future__ import annotations

import re

__all__ = ["orphans_removed", "resized", "upright"]

# Properties that describe data after the picture in the file: namespace, names (any if empty), what they belong to.
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
    """Remove the properties that refer to data after the picture in its file, which are not kept.

    Args:
        packet: XMP in UTF-8.

    Returns:
        The packet, and names of the data that the properties belonged to.
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
    """The prefixes bound to a namespace, each once."""
    return list(dict.fromkeys(re.findall(rb"xmlns:([\w.-]+)\s*=\s*[\"']%s[\"']" % namespace, packet)))


def _without(packet: bytes, prefix: bytes, names: bytes) -> bytes:
    """Remove properties, written as attributes or as elements, from a packet."""
    packet = re.sub(rb"\s+%s:(?:%s)\s*=\s*(?:\"[^\"]*\"|'[^']*')" % (prefix, names), b"", packet)
    start = rb"\s*<(%s:(?:%s))" % (prefix, names)
    packet = re.sub(start + rb"(?=[\s>/])[^>]*(?<!/)>.*?</\1\s*>", b"", packet, flags=re.S)
    packet = re.sub(start + rb"(?=[\s>/])[^>]*/>", b"", packet)
    if not re.search(rb"[\s</]%s:" % prefix, packet):
        packet = re.sub(rb"\s+xmlns:%s\s*=\s*(?:\"[^\"]*\"|'[^']*')" % prefix, b"", packet)
    return packet


def upright(packet: bytes) -> bytes:
    """Set the orientation to 1 wherever the packet has one.

    Args:
        packet: XMP in UTF-8.

    Returns:
        The packet.
    """
    return _set(packet, rb"tiff:Orientation", b"1")


def resized(packet: bytes, width: int, height: int) -> bytes:
    """Update the sizes in pixels wherever the packet has them.

    Args:
        packet: XMP in UTF-8.
        width: width in pixels.
        height: height in pixels.

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
