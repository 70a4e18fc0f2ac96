"""What a format can store of a picture: what is rejected, and what is dropped and reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import cicp
from .errors import PictureError

if TYPE_CHECKING:
    from pathlib import Path

    from .formats import Format
    from .metadata import Metadata

__all__ = ["encoding_bytes", "has_alpha", "not_kept", "refuse_unfit"]

GIGABYTES_4 = 1 << 32


def has_alpha(channels: int, metadata: Metadata) -> bool:
    """Whether the last channel is alpha.

    Args:
        channels: number of channels of the pixels.
        metadata: metadata of the picture.

    Returns:
        True for two and four channels, unless the last is of unspecified kind.
    """
    return channels in (2, 4) and not metadata.spare


def refuse_unfit(
    path: Path,
    form: Format,
    width: int,
    height: int,
    channels: int,
    metadata: Metadata,
    *,
    frames: int = 1,
    differing: bool = False,
    background: bool = False,
) -> None:
    """Reject what would lose something visible, before the first pixel.

    Args:
        path: file to write.
        form: format of the file.
        width: width of the largest frame, in pixels.
        height: height of the largest frame, in pixels.
        channels: number of channels of the pixels.
        metadata: metadata of the picture.
        frames: number of pictures in the file.
        differing: whether the frames are pages of different sizes or kinds.
        background: whether there is a background colour for transparent pixels.

    Raises:
        PictureError: if the format cannot store this picture.
    """
    if max(width, height) > form.side:
        raise PictureError(
            path,
            f"{form.label} holds at most {form.side:,} pixels a side, this picture has {width} × {height}",
            "write PNG or TIFF, or choose a smaller scale",
        )
    pages = metadata.format == "tiff" and not metadata.durations
    if frames > 1 and form.name != "tiff" and (pages or differing):
        raise PictureError(
            path,
            f"{form.label} cannot hold a document of {frames} pages",
            "write TIFF, or a file for each page (on the command line --pages split)",
        )
    if frames > 1 and not form.frames:
        raise PictureError(path, f"{form.label} cannot hold {frames} frames",
                           "write GIF, WebP or PNG, or one file per frame")  # fmt: skip
    if has_alpha(channels, metadata) and not form.alpha and not background:
        raise PictureError(
            path,
            f"{form.label} cannot hold transparency",
            "write PNG, WebP or TIFF, or give a background colour (on the command line --background white)",
        )
    if form.name == "bmp":
        from .bmp import file_size

        stored = {2: 4 if has_alpha(channels, metadata) else 1, 4: 4 if has_alpha(channels, metadata) else 3}
        if file_size(width, height, stored.get(channels, channels)) >= GIGABYTES_4:
            raise PictureError(path, f"BMP cannot hold {width} × {height} pixels (4 GB)", "write TIFF or PNG")
    code = metadata.cicp
    if code is not None and form.name not in ("avif", "png") and not cicp.plain(code) and not cicp.profile(code):
        raise PictureError(
            path, f"{form.label} cannot signal that the colours are {cicp.name(code)}", "write AVIF or PNG, which can"
        )


def not_kept(form: Format, channels: int, metadata: Metadata, *, frames: int = 1) -> tuple[str, ...]:
    """What the source has and the file will not keep.

    Args:
        form: format of the file.
        channels: number of channels of the pixels.
        metadata: metadata of the picture.
        frames: number of pictures in the file.

    Returns:
        At most one sentence, such as "EXIF, XMP and gain map not kept".
    """
    name = form.name
    camera = name not in ("gif", "bmp")
    deep = metadata.bits == 16 and (not form.deep or (frames > 1 and name in ("png", "avif")))
    many = name == "gif" and metadata.format != "gif" and metadata.origin not in ("palette", "bilevel")
    lost = {
        "EXIF": metadata.exif is not None and not camera,
        "XMP": metadata.xmp is not None and not camera,
        "press data (IPTC)": metadata.iptc is not None and name != "jpeg",
        "PNG texts": bool(metadata.comments) and name != "png",
        # 72 is libvips' default for files without a resolution.
        "resolution": name == "gif" and any(abs(value - 72) > 0.1 for value in metadata.dpi or ()),
        "16 bits": deep,
        "more than 256 colours": many,
        "half transparency": many and has_alpha(channels, metadata),
        "fourth channel" if channels == 4 else "second channel": metadata.spare and name != "tiff",
        "times of frames": bool(metadata.durations) and name == "tiff",
        "number of plays": frames > 1 and name == "avif" and metadata.loop != 0,
    }
    # A document may list this once for each page.
    found = list(dict.fromkeys([*(what for what, is_lost in lost.items() if is_lost), *metadata.left_out]))
    if not found:
        return ()
    *others, last = found
    return (f"{', '.join(others)} and {last} not kept" if others else f"{last} not kept",)


def encoding_bytes(form: str, width: int, height: int, frames: int, pixel_bytes: int) -> int:
    """Estimate the memory needed to write a file, beyond the rows passed in.

    Args:
        form: name of the format; "" for a picture that stays in memory.
        width: width of the file's picture, in pixels.
        height: height of the file's picture, in pixels.
        frames: number of pictures in the file.
        pixel_bytes: bytes per pixel.

    Returns:
        Estimated number of bytes.
    """
    frame = width * height * pixel_bytes
    # libvips reads and writes strips of a few hundred lines ahead, for all formats.
    lines = 2500 * width if form else 0
    whole = {"webp": 2 * frame, "avif": 3 * frame, "gif": frame}.get(form, 0)
    # Pillow writes these animations from all frames at once.
    return lines + (2 * frame * frames if frames > 1 and form in ("png", "avif") else whole)
