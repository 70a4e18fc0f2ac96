"""Open files: detect the format, create a lazy libvips image, and translate the errors of libvips."""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from typing import TYPE_CHECKING, Any

from . import lab, tiff
from ._vips import reason, vips
from .errors import PictureError
from .formats import foreign, is_dng, sniff

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["avif_depth", "damaged", "failed", "identify", "load", "load_page"]

LOADERS = {"png": "pngload", "jpeg": "jpegload", "webp": "webpload", "tiff": "tiffload", "avif": "heifload",
           "gif": "gifload"}  # fmt: skip
# Messages of decoders for intact files that they do not support.
BEYOND = re.compile(
    r"not configured|unsupported(?! marker)|not supported|not implemented|unknown compression|no decod",
    re.I,
)


def identify(path: Path) -> tuple[str, bytes]:
    """Detect the format of a file.

    Args:
        path: path of the file.

    Returns:
        The format, and the file's first bytes: enough for all of a PNG's chunks before its pixels.

    Raises:
        PictureError: if it cannot be opened, or is not a picture that foveal reads.
    """
    try:
        if _is_pipe(path):  # opening it would block until another process writes to it
            raise PictureError(path, "it is a pipe or a device, not a file", "save the picture to a file first")
        with path.open("rb") as file:
            head = file.read(65536)
    except FileNotFoundError as error:
        raise PictureError(path, "there is no such file", "check the name and the folder") from error
    except IsADirectoryError as error:
        raise PictureError(path, "it is a folder, not a picture", "name a file in it, or let the command read the "
                           "whole folder") from error  # fmt: skip
    except OSError as error:
        if os.path.isdir(path):  # noqa: PTH112  Windows reports a folder as PermissionError; Path.is_dir may raise
            raise PictureError(path, "it is a folder, not a picture", "name a file in it") from error
        raise PictureError(path, f"it cannot be opened ({error.strerror})", "check that you may read it") from error
    if not head:
        raise PictureError(path, "the file is empty (zero bytes)", "copy or download it again")
    found = sniff(head)
    if found is None:
        raise PictureError(path, *foreign(head))
    return ("dng" if found == "tiff" and _is_dng_file(path) else found), head


def _is_dng_file(path: Path) -> bool:
    """Whether a TIFF is a DNG, wherever its first directory lies."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return is_dng(data)
    except (OSError, ValueError):
        return False


def _is_pipe(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:  # opening the file will raise a clear error
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def load(path: Path, format_: str, **options: int) -> Any:
    """Open a file; only the header is read until pixels are requested.

    Args:
        path: path of the file.
        format_: format of the file.
        **options: options of libvips' loader.

    Returns:
        A lazy image.
    """
    if format_ in {"avif", "png"}:
        options |= {"unlimited": True}  # our own limit is stricter and has a more helpful message
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
    """A file's name for libvips; None if it is not valid UTF-8, which pyvips requires."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return None
    return os.fspath(path)


def damaged(path: Path, why: str) -> PictureError:
    """The error for an incomplete file.

    Args:
        path: path of the file.
        why: reason, as reported by the decoder.

    Returns:
        The exception to raise.
    """
    return PictureError(path, f"the file is damaged or truncated ({why})", "copy or download it again")


def failed(path: Path, error: Exception) -> PictureError:
    """The error for a failure of libvips; unsupported files are not reported as damaged.

    Args:
        path: path of the file.
        error: exception raised by pyvips.

    Returns:
        The exception to raise.
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
    """Load a page of a TIFF file; Lab encodings that libvips does not support are returned raw.

    Args:
        path: path of the file.
        kind: the page, None if unknown.
        number: page number, from 0.

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
    """Bit depth of an AVIF.

    Args:
        image: lazy image from `load`.

    Returns:
        8, 10 or 12.
    """
    return int(image.get("bits-per-sample")) if image.get_typeof("bits-per-sample") else 8
