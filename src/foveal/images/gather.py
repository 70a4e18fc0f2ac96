"""Collect the metadata of a picture, and list what cannot be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import avif, cicp, colour, exif, jpeg, lab, png_chunks, tiff, xmp
from ._vips import blob
from .gif import has_comment
from .load import avif_depth
from .metadata import Info, Metadata

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["gather"]

HIGHEST_DPI = 1e6  # larger values are corrupt, and libvips does not accept them
# TIFF tags that users would miss, by what they contain.
TIFF_EXTRAS = {
    "GeoTIFF tags": (33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113),
    "Photoshop layers": (37724,),
    "press data (IPTC)": (33723,),
    "colour tags (white point, primaries, curves)": (301, 318, 319),
}


def gather(
    path: Path, info: Info, image: Any, kind: tiff.Page | None, *, first: bool = True, reduced: int = 0
) -> Metadata:
    """Collect everything except the pixels and the frame durations.

    Args:
        path: path of the file.
        info: content of its header.
        image: lazy image of its first frame, or of a page.
        kind: page of a TIFF.
        first: whether the image is the first of the file.
        reduced: number of pages of a TIFF that are copies of others.

    Returns:
        The metadata.
    """
    format_ = info.format
    camera = (exif.from_tiff(path) if first else None) if format_ == "tiff" else blob(image, "exif-data")
    # PNG stores dots per metre, TIFF single precision: rounding to two decimals restores 300.
    dpi: tuple[float, float] | None = (round(image.xres * 25.4, 2), round(image.yres * 25.4, 2))
    if image.xres == 1.0 and image.yres == 1.0:  # libvips' value for unknown
        dpi = exif.dpi(camera) if camera else None
    if dpi is not None and not max(dpi) < HIGHEST_DPI:
        dpi = None
    icc, origin = blob(image, "icc-profile-data"), ""
    if kind is not None and lab.own(kind.photometric, kind.bits):
        icc, origin = colour.srgb_profile(), "lab"
    elif image.interpretation in ("cmyk", "lab", "labs"):
        icc, origin = colour.srgb_profile(), image.interpretation.rstrip("s")
    elif image.get_typeof("palette") and image.get("palette"):
        origin = "palette"
    stated = int(image.get("bits-per-sample")) if image.get_typeof("bits-per-sample") else info.bits
    if stated == 1 and not origin:
        origin = "bilevel"
    compression = str(image.get("compression")) if image.get_typeof("compression") else ""
    chunks, lost = png_chunks.read(path) if format_ == "png" else ((), ())
    said = (png_chunks.text_of(*one) for one in chunks)
    packet, orphans = xmp.orphans_removed(blob(image, "xmp-data") or b"")
    code = cicp.from_chunks(chunks)
    if format_ == "avif" and not icc:
        code = avif.colours(path)
    left_out = [*orphans, *(f"PNG chunk {name}" for name in lost), *_others(path, info, image, kind)]
    if "gain map" in left_out:  # the gain map is the embedded picture
        left_out = [name for name in left_out if name not in ("embedded pictures", "data behind the picture")]
    if reduced:
        left_out.append(f"{reduced} reduced page{'s' if reduced > 1 else ''} (thumbnails or masks)")
    iptc = blob(image, "iptc-data") if format_ == "jpeg" else None
    return Metadata(
        icc=icc,
        exif=exif.upright(camera) if camera else None,
        xmp=xmp.upright(packet) if packet else None,
        iptc=iptc,
        dpi=dpi,
        format=format_,
        bits=info.bits,
        depth=avif_depth(image) if format_ == "avif" and stated > 8 else info.bits,
        lossless=_lossless(path, format_, compression),
        comments=tuple(one for one in said if one is not None),
        chunks=chunks,
        cicp=code,
        origin=origin,
        spare=kind is not None and len(kind.extra) == 1 and kind.extra[0] == 0 and info.channels in (2, 4),
        left_out=tuple(dict.fromkeys(left_out)),
    )


def _others(path: Path, info: Info, image: Any, kind: tiff.Page | None) -> list[str]:
    """Content of a file that libvips does not expose."""
    if info.format == "jpeg":
        return jpeg.extras(path)
    if kind is not None:
        found = [name for name, tags in TIFF_EXTRAS.items() if kind.tags.intersection(tags)]
        surplus = image.bands - 4 if image.interpretation == "cmyk" else 0
        return found + ([f"{surplus - 1} further channels"] if surplus > 1 else [])
    if info.format == "gif":
        return ["comment"] if has_comment(path) else []
    # Pictures besides the main one; those of a sequence are its frames.
    more = int(image.get("n-pages")) - 1 if info.format == "avif" and info.frames == 1 else 0
    return [f"{more} further picture{'s' if more > 1 else ''}"] if more > 0 else []


def _lossless(path: Path, format_: str, compression: str) -> bool:
    if format_ == "webp":
        with path.open("rb") as file:
            head = file.read(1 << 16)
        lossless, lossy = head.find(b"VP8L"), head.find(b"VP8 ")
        return lossless >= 0 and (lossy < 0 or lossless < lossy)
    return format_ in ("png", "tiff", "gif") and compression not in ("jpeg", "webp")
