"""The file formats: how to recognise them, and what each can store."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import PictureError
from .tiff import Buffer, Tiff

__all__ = [
    "FORMATS",
    "READABLE",
    "READ_SUFFIXES",
    "SUFFIXES",
    "Format",
    "foreign",
    "format_for",
    "is_dng",
    "result_format",
    "sniff",
]


@dataclass(frozen=True)
class Format:
    """Capabilities of a format.

    Args:
        name: name, as in `Metadata.format`.
        label: name for the user.
        suffixes: suffixes of file names, the usual one first.
        side: longest side in pixels that its writer supports.
        deep: whether it stores 16 bits.
        alpha: whether it stores transparency.
        grey: whether it stores grey as one channel.
        frames: whether it stores more than one picture.
        icc: whether it stores a colour profile.
        modules: modules that read it, of a format that is read only.
        extra: extra of foveal that brings these modules.
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    side: int
    deep: bool = False
    alpha: bool = True
    grey: bool = True
    frames: bool = False
    icc: bool = True
    modules: tuple[str, ...] = ()
    extra: str = ""


_ALL = (
    Format("png", "PNG", (".png", ".apng"), 2**31 - 1, deep=True, frames=True),
    Format("jpeg", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), 65500, alpha=False),
    Format("webp", "WebP", (".webp",), 16383, grey=False, frames=True),
    Format("tiff", "TIFF", (".tif", ".tiff"), 2**31 - 1, deep=True, frames=True),
    Format("avif", "AVIF", (".avif",), 16384, deep=True, grey=False, frames=True),
    Format("gif", "GIF", (".gif",), 65535, grey=False, frames=True, icc=False),
    Format("bmp", "BMP", (".bmp", ".dib"), 2**31 - 1, icc=False),
)
FORMATS = {one.name: one for one in _ALL}
SUFFIXES = {suffix: one for one in _ALL for suffix in one.suffixes}
# Read only: a result is written in another format, see `result_format`.
_SOURCES = (
    Format("heic", "HEIC", (".heic", ".heif", ".hif"), 0, modules=("pillow_heif",), extra="heic"),
    Format("jxl", "JPEG XL", (".jxl",), 0, modules=("imagecodecs", "pillow_jxl"), extra="jxl"),
    Format("dng", "DNG", (".dng",), 0, modules=("rawpy",), extra="raw"),
)
READABLE = FORMATS | {one.name: one for one in _SOURCES}
READ_SUFFIXES = SUFFIXES | {suffix: one for one in _SOURCES for suffix in one.suffixes}


DNG_VERSION = 50706
_PNG_FIRST = "convert it to PNG or TIFF first, for example with ImageMagick"
_HEIF = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
# Unsupported formats that users may try: name, advice, and signatures, (offset, bytes) each.
_FOREIGN: tuple[tuple[str, str, tuple[tuple[int, bytes], ...]], ...] = (
    ("a JPEG 2000 picture", _PNG_FIRST, ((4, b"jP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51"))),
    ("a PDF document", "turn its pages into pictures first: pdftoppm -png IN.pdf OUT", ((0, b"%PDF"),)),
    ("a PostScript drawing", "export it as PNG in the size you want", ((0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6"))),
    ("a Photoshop document", "save it as TIFF or PNG first", ((0, b"8BPS"),)),
    ("a camera's raw file", "convert it to DNG, or develop it to TIFF first",
     ((4, b"ftypcrx "), (0, b"FUJIFILMCCD-RAW"), (0, b"IIU\0"), (0, b"IIRO"), (0, b"IIRS"))),
    ("an OpenEXR picture", _PNG_FIRST, ((0, b"\x76\x2f\x31\x01"),)),
    ("a Radiance HDR picture", _PNG_FIRST, ((0, b"#?RADIANCE"), (0, b"#?RGBE"))),
    ("a PNM picture", _PNG_FIRST, tuple((0, b"P%d" % i + end) for i in range(1, 8) for end in (b"\n", b" ", b"\r\n"))),
    ("an icon", _PNG_FIRST, ((0, b"\0\0\1\0"),)),
    ("a DirectDraw surface", _PNG_FIRST, ((0, b"DDS "),)),
    ("a video without a film's name", "end its name in .mp4, .mkv, .mov, .webm or .avi, or save its frames "
     "as pictures: ffmpeg -i IN frame%05d.png",
     ((4, b"ftyp"), (0, b"\x1a\x45\xdf\xa3"), (8, b"AVI "), (4, b"moov"), (4, b"mdat"), (0, b"\0\0\1\xba"))),
    ("a ZIP archive", "unpack it first", ((0, b"PK\3\4"),)),
)  # fmt: skip


def sniff(head: bytes) -> str | None:
    """Recognise the format of a file from its first bytes, since file names may be wrong.

    Args:
        head: the first 32 bytes or more.

    Returns:
        The format's name, or None for anything that foveal does not read.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "dng" if is_dng(head) else "tiff"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1") and b"avi" in head[8:]:
        return "avif"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        return "heic"
    if head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "jxl"
    # Two letters are a weak signature, so the length of the header is checked too.
    if head[:2] == b"BM" and head[14:18] in {bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124)}:
        return "bmp"
    return None


def is_dng(head: Buffer) -> bool:
    """Whether a TIFF is a DNG.

    Args:
        head: the file, or its first bytes.

    Returns:
        Whether its first directory, as far as it is among these bytes, states a version of DNG.
    """
    try:
        tiff = Tiff(head)
        return any(entry.tag == DNG_VERSION for entry in tiff.entries(tiff.first))
    except (ValueError, struct.error):
        return False


def result_format(name: str) -> str:
    """The format of a result if the user asks for none.

    Args:
        name: name of the source's format.

    Returns:
        The same if foveal writes it; otherwise PNG, which keeps everything that HEIC, JPEG XL and DNG may hold.
    """
    return name if name in FORMATS else "png"


def foreign(head: bytes) -> tuple[str, str]:
    """Identify a file that foveal does not read, with advice.

    Args:
        head: the first 32 bytes or more, not recognised by `sniff`.

    Returns:
        The problem and what to do, as for `PictureError`.
    """
    for label, how, signs in _FOREIGN:
        if any(head[at : at + len(sign)] == sign for at, sign in signs):
            return f"it is {label}, which foveal does not read", how
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "it is a web page, not a picture", "download the picture itself"
    if b"<svg" in head[:4096].lower():
        return "it is an SVG drawing, which has no pixels yet", "export it as PNG in the size you want"
    known = ", ".join(one.label for one in READABLE.values())
    return "it is not a picture that foveal reads", f"give one of {known}"


def format_for(path: str | Path) -> Format:
    """The format of a file name.

    Args:
        path: file to write.

    Returns:
        The format.

    Raises:
        PictureError: if no format has this suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(one.suffixes[0] for one in _ALL)
        wrong = f"foveal writes no {suffix} files" if suffix else "the name has no suffix to tell the format by"
        raise PictureError(path, wrong, f"end the name in one of {known}")
    return SUFFIXES[suffix]
