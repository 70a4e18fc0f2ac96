"""What belongs to a picture besides its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cicp import Cicp

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
        chunks: PNG's chunks of texts and colours as they were, kind and data; a text is put back byte for byte as long
            as `comments` has it.
        cicp: what the values mean where no profile says it, as AVIF and PNG have it; it goes before `icc`.
        origin: kind of pixels in the file when they were converted: "cmyk", "lab", "palette", "bilevel", or "".
        spare: the last of 2 or 4 channels is of no specified kind, and so no transparency; TIFF alone has this.
        left_out: what the file holds that was not read: "gain map", "GeoTIFF tags", "1 reduced page", …
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
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    cicp: Cicp | None = None
    origin: str = ""
    spare: bool = False
    left_out: tuple[str, ...] = ()


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
        pages: all pages of a document whose pages differ in size or kind; empty where they are alike.
    """

    width: int
    height: int
    channels: int
    bits: int
    frames: int
    format: str
    pages: tuple[Info, ...] = ()

    @property
    def megapixels(self) -> float:
        """Of one frame."""
        return self.width * self.height / 1e6

    @property
    def total_pixels(self) -> int:
        """Of all frames."""
        return sum(page.width * page.height for page in self.pages) or self.width * self.height * self.frames
