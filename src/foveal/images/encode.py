"""Settings of libvips' encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._vips import vips

if TYPE_CHECKING:
    from .metadata import Metadata

__all__ = ["DEFAULT_QUALITY", "saver"]

DEFAULT_QUALITY = {"jpeg": 95, "webp": 95, "avif": 90}


def saver(name: str, metadata: Metadata, *, quality: int | None, raw_bytes: int, depth: int) -> tuple[str, dict]:
    """The encoder of a format and its settings.

    Args:
        name: name of the format.
        metadata: metadata of the picture.
        quality: 1 to 100, or None for the default.
        raw_bytes: number of bytes of all pixels.
        depth: bit depth, for AVIF.

    Returns:
        Name of a method of a pyvips image, and its arguments.
    """
    keep = vips().ForeignKeep
    common: dict[str, Any] = {}
    named = metadata.dpi and name in ("jpeg", "webp", "avif")  # these store the resolution in EXIF
    if not metadata.exif and not named:  # libvips would create an EXIF block without information
        common["keep"] = keep.ICC | keep.XMP | keep.IPTC | keep.OTHER
    value = quality or DEFAULT_QUALITY.get(name, 0)
    if name == "png":
        # Upscaled pictures are smooth: the filter "up" at level 2 gave smaller files than level 6 without it.
        return "pngsave", common | {"compression": 2, "filter": "up"}
    if name == "jpeg":
        return "jpegsave", common | {"Q": value, "subsample_mode": "off"}
    if name == "tiff":
        # LZW may expand noise a little, so the switch comes early.
        big = raw_bytes > 2 << 30
        return "tiffsave", common | {"compression": "lzw", "predictor": "horizontal", "resunit": "inch", "bigtiff": big}
    if name == "webp":
        lossless = quality == 100 or (quality is None and metadata.lossless)
        options: dict[str, Any] = {"lossless": True, "exact": True} if lossless else {"Q": value}
        return "webpsave", common | options | {"effort": 2}
    if name == "avif":
        options = {"compression": "av1", "effort": 2, "bitdepth": depth}
        options |= {"lossless": True} if value == 100 else {"Q": value, "subsample_mode": "off"}
        return "heifsave", common | options
    return "gifsave", common | {"keep_duplicate_frames": True}
