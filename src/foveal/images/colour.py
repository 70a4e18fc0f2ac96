"""Colour conversions for files whose pixels or format cannot carry the profile unchanged."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import cicp, png_chunks
from ._vips import vips

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .metadata import Metadata

__all__ = ["Meaning", "image_to_srgb", "meaning", "rows_to_srgb", "space", "srgb_profile"]


@cache
def srgb_profile() -> bytes:
    """The sRGB profile included in libvips (public domain).

    Returns:
        An ICC profile of about 500 bytes.
    """
    return bytes(vips().Image.profile_load("srgb"))


def space(icc: bytes | None) -> str:
    """Colour space that a profile describes.

    Args:
        icc: ICC profile, or None.

    Returns:
        "rgb", "grey", "cmyk", another four-letter name, or "" without a profile.
    """
    if not icc or len(icc) < 20:
        return ""
    name = icc[16:20].decode("ascii", "replace").strip().lower()
    return "grey" if name == "gray" else name


def image_to_srgb(image: Any) -> Any:
    """Convert an image to sRGB through its own profile; CMYK without one uses a common press profile.

    The intent is relative colorimetric with black-point compensation, as in Photoshop and browsers.

    Args:
        image: pyvips image.

    Returns:
        A pyvips image in sRGB with the sRGB profile attached, of the same bit depth; alpha is unchanged.
    """
    depth = 16 if image.format == "ushort" else 8
    return image.icc_transform(
        "srgb", embedded=True, intent="relative", black_point_compensation=True, depth=depth
    )  # fmt: skip


def rows_to_srgb(rows: NDArray[Any], icc: bytes) -> NDArray[Any]:
    """Convert rows of pixels to sRGB.

    Args:
        rows: pixels, (n, W, C), uint8 or uint16, alpha last if C is 2 or 4.
        icc: profile of the pixels; an RGB profile on grey pixels treats them as equal red, green and blue.

    Returns:
        (n, W, 3) or, with alpha, (n, W, 4), of the same dtype.
    """
    from ._vips import set_blob

    colours, alpha = (rows[..., :-1], rows[..., -1:]) if rows.shape[2] in (2, 4) else (rows, None)
    if colours.shape[2] == 1 and space(icc) != "grey":
        colours = np.repeat(colours, 3, axis=2)
    high, wide, channels = colours.shape
    deep = rows.dtype == np.uint16
    names = {(1, False): "b-w", (1, True): "grey16", (3, False): "srgb", (3, True): "rgb16"}
    data = np.ascontiguousarray(colours)
    image = vips().Image.new_from_memory(data, wide, high, channels, "ushort" if deep else "uchar")
    image = image.copy(interpretation=names[channels, deep])
    set_blob(image, "icc-profile-data", icc)
    out = np.frombuffer(image_to_srgb(image).write_to_memory(), rows.dtype).reshape(high, wide, 3)
    return out if alpha is None else np.concatenate([out, alpha], axis=2)


class Meaning(NamedTuple):
    """How a file will describe its colours.

    Args:
        icc: profile to attach, or to convert with.
        code: code points for AVIF's box.
        chunks: chunks for PNG.
    """

    icc: bytes | None
    code: cicp.Cicp | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()


def meaning(metadata: Metadata, format_: str, channels: int) -> Meaning:
    """Translate the colour description of a source for a format: natively or as a profile.

    Args:
        metadata: metadata of the source.
        format_: name of the format to write.
        channels: number of channels of the pixels.

    Returns:
        The description to write. PQ and HLG have no profile; `fit.refuse_unfit` has rejected them before.
    """
    grey = channels <= 2
    chunks = tuple(one for one in metadata.chunks if one[0] in png_chunks.COLOURS)
    code = metadata.cicp
    if code is None:
        if format_ == "png":
            return Meaning(metadata.icc, chunks=chunks)
        return Meaning(metadata.icc or cicp.profile_of_chunks(chunks, grey=grey))
    if format_ == "png" and chunks:
        return Meaning(metadata.icc, chunks=chunks)
    if format_ == "avif":
        return Meaning(None, code)
    icc = None if cicp.plain(code) else cicp.profile(code, grey=grey)
    if format_ == "png" and not cicp.plain(code) and max(code[:2]) < 256:
        # The profile is for readers that do not support the chunk.
        return Meaning(icc, chunks=((b"cICP", bytes((code.primaries, code.transfer, 0, 1))),))
    return Meaning(icc)
