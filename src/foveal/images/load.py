"""Open files: which format one is, and a lazy image of libvips; the errors of libvips in our words."""

from __future__ import annotations

import os
import re
import stat
import struct
from typing import TYPE_CHECKING, Any

from . import lab, tiff
from ._vips import reason, vips
from .errors import PictureError
from .formats import foreign, sniff

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["avif_depth", "damaged", "failed", "identify", "load", "load_page"]

LOADERS = {"png": "pngload", "jpeg": "jpegload", "webp": "webpload", "tiff": "tiffload", "avif": "heifload",
           "gif": "gifload"}  # fmt: skip
# What decoders say of files that are whole and beyond them.
BEYOND = re.compile(
    r"not configured|unsupported(?! marker)|not supported|not implemented|unknown compression|no decod",
    re.I,
)


def identify(path: Path) -> tuple[str, bytes]:
    """Tell which format a file is.

    Args:
        path: of the file.

    Returns:
        The format, and the file's first bytes: enough for everything a PNG says before its pixels.

    Raises:
        PictureError: it cannot be opened, or is no picture that foveal reads.
    """
    try:
        if _is_pipe(path):  # opening it would wait for somebody to write into it
            raise PictureError(path, "it is a pipe or a device, not a file", "save the picture to a file first")
        with path.open("rb") as file:
            head = file.read(65536)
    except FileNotFoundError as error:
        raise PictureError(path, "there is no such file", "check the name and the folder") from error
    except IsADirectoryError as error:
        raise PictureError(path, "it is a folder, not a picture", "name a file in it, or let the command read the "
                           "whole folder") from error  # fmt: skip
    except OSError as error:
        if os.path.isdir(path):  # noqa: PTH112  Windows calls a folder a lack of permission; Path.is_dir may raise
            raise PictureError(path, "it is a folder, not a picture", "name a file in it") from error
        raise PictureError(path, f"it cannot be opened ({error.strerror})", "check that you may read it") from error
    if not head:
        raise PictureError(path, "the file is empty (zero bytes)", "copy or download it again")
    found = sniff(head)
    if found is None:
        raise PictureError(path, *foreign(head))
    return found, head


def _is_pipe(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:  # which opening it will explain
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def load(path: Path, format_: str, **options: int) -> Any:
    """Open a file; nothing but the header is read until pixels are asked for.

    Args:
        path: of the file.
        format_: that it is.
        **options: of libvips' loader.

    Returns:
        A lazy image.
    """
    if format_ in {"avif", "png"}:
        options |= {"unlimited": True}  # our own limit is stricter and has a message that helps
    loader, place = LOADERS[format_], _place(path)
    try:
        if place is not None:
            return getattr(vips().Image, loader)(place, access="sequential", fail_on="error", **options)
        with path.open("rb") as file:
            source = vips().Source.new_from_descriptor(file.fileno())
        return getattr(vips().Image, f"{loader}_source")(source, access="sequential", fail_on="error", **options)
    except vips().Error as error:
        raise failed(path, error) from error


def _place(path: Path) -> str | None:
    """A file's name for libvips; None if it is no UTF-8, in which pyvips can neither ask nor report."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return None
    return os.fspath(path)


def damaged(path: Path, why: str) -> PictureError:
    """What is raised for a file that is not whole.

    Args:
        path: of the file.
        why: it is damaged.

    Returns:
        What to raise.
    """
    return PictureError(path, f"the file is damaged or truncated ({why})", "copy or download it again")


def failed(path: Path, error: Exception) -> PictureError:
    """What libvips could not do: a file that it cannot decode is not called damaged.

    Args:
        path: of the file.
        error: raised by pyvips.

    Returns:
        What to raise.
    """
    text = str(getattr(error, "detail", "") or error)
    for line in text.splitlines():
        if BEYOND.search(line):
            return PictureError(
                path,
                f"it is of a kind that foveal cannot decode ({line.strip()})",
                "save it as a plain PNG or TIFF (uncompressed, LZW or deflate) first",
            )
    return damaged(path, reason(error))


def load_page(path: Path, kind: tiff.Page | None, number: int) -> Any:
    """A page of a TIFF file; Lab that libvips does not read comes as it is stored.

    Args:
        path: of the file.
        kind: of the page, None where it is not known.
        number: from 0.

    Returns:
        A lazy image.
    """
    if kind is not None and lab.own(kind.photometric, kind.bits):
        try:
            return vips().Image.tiffload_buffer(tiff.as_rgb(path), page=number, fail_on="error")
        except (vips().Error, struct.error, ValueError) as error:
            raise failed(path, error) from error
    return load(path, "tiff", page=number) if number else load(path, "tiff")


def avif_depth(image: Any) -> int:
    """Bits of an AVIF's samples.

    Args:
        image: from `load`.

    Returns:
        8, 10 or 12.
    """
    return int(image.get("bits-per-sample")) if image.get_typeof("bits-per-sample") else 8
