"""Decode the pixels of an open file to upright grey or RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import colour, lab
from ._vips import blob, vips
from .errors import PictureError
from .load import failed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from . import tiff

__all__ = ["channels_of", "converted", "decoded", "turn_of", "upright"]

# By EXIF orientation: counter-clockwise rotations for numpy.rot90, and whether to mirror first.
TURNS = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True),
         8: (1, False)}  # fmt: skip
# libvips' names of the supported colour spaces; others would be treated as RGB.
INTERPRETATIONS = frozenset(("b-w", "srgb", "rgb", "grey16", "rgb16", "cmyk", "lab", "labs"))


def turn_of(image: Any) -> int:
    """The rotation that the pixels of a file need.

    Args:
        image: lazy image from `load`.

    Returns:
        EXIF orientation, 1 to 8.
    """
    turn = int(image.get("orientation")) if image.get_typeof("orientation") else 1
    return turn if turn in TURNS else 1


def channels_of(path: Path, image: Any, kind: tiff.Page | None) -> int:
    """Number of channels after conversion; also checks that the pixels can be read without loss.

    Args:
        path: path of the file.
        image: lazy image from `load`.
        kind: page of a TIFF.

    Returns:
        1 to 4.

    Raises:
        PictureError: if the pixels are of an unsupported kind.
    """
    known = kind is not None and lab.own(kind.photometric, kind.bits)
    if not known and image.interpretation not in INTERPRETATIONS:
        raise PictureError(
            path,
            f"its colour space is {image.interpretation}; foveal reads grey, RGB, CMYK and Lab",
            "convert it to RGB first",
        )
    if image.format not in ("uchar", "ushort") and image.interpretation not in ("lab", "labs"):
        raise PictureError(
            path,
            f"its sample format is {image.format}; foveal reads 8-bit and 16-bit unsigned ones",
            "convert it to 16 bits first, choosing which values mean black and white",
        )
    if image.interpretation == "cmyk":
        return 4 if image.bands > 4 else 3
    if image.bands > 4:
        raise PictureError(path, f"it has {image.bands} channels; foveal reads 1 to 4",
                           "save the channels you want as a picture of their own")  # fmt: skip
    return int(image.bands)


def converted(path: Path, image: Any, kind: tiff.Page | None) -> Any:
    """Convert to grey or RGB.

    Args:
        path: path of the file.
        image: lazy image from `load`.
        kind: page of a TIFF.

    Returns:
        A lazy image.
    """
    channels = channels_of(path, image, kind)
    if kind is not None and lab.own(kind.photometric, kind.bits):
        image = lab.to_rgb(image, kind.photometric)
    elif image.interpretation == "cmyk":
        if colour.space(blob(image, "icc-profile-data")) not in ("", "cmyk"):
            image = image.copy()
            image.remove("icc-profile-data")
        image = colour.image_to_srgb(image)
    elif image.interpretation in ("lab", "labs"):
        image = image.colourspace("rgb16" if image.interpretation == "labs" else "srgb")
    return image[:channels] if image.bands > channels else image


def decoded(path: Path, image: Any, depth: int) -> NDArray[Any]:
    """Decode all pixels.

    Args:
        path: path of the file.
        image: lazy image.
        depth: bit depth of an AVIF, 0 for other formats.

    Returns:
        (H, W, C), uint8 or uint16.

    Raises:
        PictureError: if the file is damaged or not supported by the decoder.
    """
    try:
        data = image.write_to_memory()
    except vips().Error as error:
        raise failed(path, error) from error
    pixels: NDArray[Any] = np.frombuffer(data, np.uint16 if image.format == "ushort" else np.uint8)
    pixels = pixels.reshape(image.height, image.width, image.bands)
    if depth in (10, 12):
        # libvips shifts these up and leaves the low bits 0, so white would be 65,472; replicating the high bits into
        # the low ones makes white 65,535 and is undone exactly by shifting back.
        pixels = pixels | (pixels >> depth)
    return pixels


def upright(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    """Rotate and mirror pixels.

    Args:
        pixels: pixels, (H, W, C).
        turn: EXIF orientation.

    Returns:
        (H, W, C) or (W, H, C), contiguous.
    """
    turns, mirror = TURNS[turn]
    if mirror:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, turns))
