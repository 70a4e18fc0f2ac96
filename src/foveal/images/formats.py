"""The formats: how a file shows which it is, and what each can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import PictureError

__all__ = ["FORMATS", "SUFFIXES", "Format", "format_for", "sniff"]


@dataclass(frozen=True)
class Format:
    """What one format can hold.

    Args:
        name: as in `Metadata.format`.
        label: as people write it.
        suffixes: of file names, the usual one first.
        side: longest side in pixels that its writer takes.
        deep: 16 bits.
        alpha: transparency.
        grey: one channel stays one channel.
        frames: more than one picture.
        icc: a colour profile.
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


def sniff(head: bytes) -> str | None:
    """Which format a file is, by its first bytes; names of files lie.

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
        return "tiff"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1") and b"avi" in head[8:]:
        return "avif"
    # Two letters are a weak sign: the header's length is asked too.
    if head[:2] == b"BM" and head[14:18] in {bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124)}:
        return "bmp"
    return None


def format_for(path: str | Path) -> Format:
    """The format that a file's name asks for.

    Args:
        path: to write.

    Returns:
        The format.

    Raises:
        PictureError: no format has this suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(one.suffixes[0] for one in _ALL)
        wrong = f"foveal writes no {suffix} files" if suffix else "the name has no suffix to tell the format by"
        raise PictureError(path, wrong, f"end the name in one of {known}")
    return SUFFIXES[suffix]
