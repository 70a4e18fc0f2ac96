"""What belongs to a picture besides its pixels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Info", "Metadata"]


@dataclass(frozen=True)
class Metadata:
    """Everything read with a picture that is written back with it.

    Args:
        icc: colour profile of the pixels; None means sRGB, or its grey.
        exif: camera data as a TIFF structure (begins `II` or `MM`), orientation already 1, thumbnail removed.
        xmp: Adobe's packet, orientation already 1.
        iptc: press data (captions, credits) as a JPEG keeps them; other formats do not hold them in this form.
        dpi: dots per inch, across and down; None where the file says nothing.
        format: the file was a "png", "jpeg", "webp", "tiff", "avif", "gif" or "bmp".
        bits: of the pixels in memory, 8 or 16.
        depth: of the samples in the file; 10 and 12 are AVIF's and are held as 16 in memory.
        lossless: the file's format loses nothing (a PNG, a lossless WebP), so writing should lose nothing either.
        durations: milliseconds each frame is shown; empty for a still picture.
        loop: how often an animation plays; 0 means for ever.
        comments: PNG's texts, pairs of keyword and text.
        origin: kind of pixels in the file when they were converted: "cmyk", "lab", "palette", "bilevel", or "".
        left_out: pages of the file that were not read because they differ from the first in size or kind.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    format: str = "png"
    bits: int = 8
    depth: int = 8
    lossless: bool = True
    durations: tuple[int, ...] = ()
    loop: int = 0
    comments: tuple[tuple[str, str], ...] = ()
    origin: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class Info:
    """What a file's header promises; nothing is decoded to learn it.

    Args:
        width: columns after the orientation is applied.
        height: rows of one frame after the orientation is applied.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
        bits: of the pixels as `read` gives them, 8 or 16.
        frames: pictures in the file, above 1 for animations and documents of several pages.
        format: "png", "jpeg", "webp", "tiff", "avif", "gif" or "bmp".
    """

    width: int
    height: int
    channels: int
    bits: int
    frames: int
    format: str

    @property
    def megapixels(self) -> float:
        """Of one frame."""
        return self.width * self.height / 1e6
