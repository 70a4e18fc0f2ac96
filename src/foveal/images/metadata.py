"""Metadata of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cicp import Cicp

__all__ = ["Info", "Metadata"]


@dataclass(frozen=True)
class Metadata:
    """Everything that is read with a picture and written back with it.

    Args:
        icc: colour profile of the pixels; None means sRGB, or its grey.
        exif: camera data as a TIFF structure (begins `II` or `MM`), orientation already 1, thumbnail removed.
        xmp: Adobe's packet, orientation already 1.
        iptc: press data (captions, credits) as stored in a JPEG; other formats do not store them in this form.
        dpi: dots per inch, horizontal and vertical; None if the file does not give it.
        format: format of the file: "png", "jpeg", "webp", "tiff", "avif", "gif", "bmp", "heic", "jxl" or "dng".
        bits: bits of the pixels in memory, 8 or 16.
        depth: bits of the samples in the file; 10 and 12 occur in AVIF and HEIC and are held as 16 in memory.
        lossless: whether the file is lossless (a PNG, a lossless WebP), so that writing should be too.
        durations: milliseconds that each frame is shown; empty for a still picture.
        loop: number of times an animation plays; 0 means forever.
        comments: PNG's texts, pairs of keyword and text.
        chunks: PNG's text and colour chunks, type and data; a text is written back byte for byte if `comments` still
            contains it.
        cicp: code points that define the colours without a profile, in AVIF, HEIC, JPEG XL and PNG; takes
            precedence over `icc`.
        origin: kind of pixels in the file if they were converted: "cmyk", "lab", "palette", "bilevel", or "".
        spare: whether the last of 2 or 4 channels is of unspecified kind, and so not alpha; only in TIFF.
        left_out: content of the file that was not read: "gain map", "GeoTIFF tags", "1 reduced page", …
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
    """Content of a file's header; nothing is decoded to obtain it.

    Args:
        width: number of columns after applying the orientation.
        height: number of rows of one frame after applying the orientation.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
        bits: bits of the pixels as returned by `read`, 8 or 16.
        frames: number of pictures in the file, above 1 for animations and multi-page documents.
        format: "png", "jpeg", "webp", "tiff", "avif", "gif", "bmp", "heic", "jxl" or "dng".
        pages: all pages of a document whose pages differ in size or kind; empty if they do not.
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
        """Megapixels of one frame."""
        return self.width * self.height / 1e6

    @property
    def total_pixels(self) -> int:
        """Number of pixels of all frames."""
        return sum(page.width * page.height for page in self.pages) or self.width * self.height * self.frames
