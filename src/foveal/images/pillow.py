"""Formats that Pillow reads or writes better than libvips: BMP, animated PNG and animated AVIF.

Pillow's pixel limit is bypassed on purpose (its classes are called directly): foveal has already checked its own limit.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PictureError
from .metadata import Info, Metadata

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["PillowFrames", "animation_header", "bmp_info", "bmp_metadata", "count_frames", "plain", "read_bmp",
           "write_animation"]  # fmt: skip

# Exceptions that Pillow's decoders raise for corrupt data.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, IndexError, KeyError)
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def _load(path: Path, format_: str, file: Any) -> Any:
    """Read the header; the caller closes `file`."""
    from PIL import AvifImagePlugin, BmpImagePlugin, PngImagePlugin

    classes: dict[str, Any] = {
        "bmp": BmpImagePlugin.BmpImageFile,
        "png": PngImagePlugin.PngImageFile,
        "avif": AvifImagePlugin.AvifImageFile,
    }
    try:
        return classes[format_](file)
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PictureError:
    return PictureError(path, f"the file is damaged or truncated ({error})", "copy or download it again")


def _plain(image: Any) -> str:
    """The mode to convert to: grey, grey and alpha, RGB or RGBA."""
    transparent = "transparency" in image.info
    if image.mode in ("1", "L"):
        return "LA" if transparent else "L"
    if image.mode in ("LA", "RGBA"):
        return str(image.mode)
    return "RGBA" if transparent else "RGB"


class PillowFrames:
    """Frames of one animation, decoded by Pillow.

    Args:
        path: path of the file.
        format_: "png" or "avif".
        channels: number of channels to convert to.

    Raises:
        PictureError: if the file is damaged or truncated.
    """

    def __init__(self, path: Path, format_: str, channels: int) -> None:
        self.path = path
        self.mode = MODES[channels]
        # In memory, so that no file stays open between requests for frames; animations are small files.
        self.image = _load(path, format_, io.BytesIO(path.read_bytes()))
        # A PNG may contain a default image for readers without animation support; it is not a frame.
        self.skip = int(bool(self.image.info.get("default_image")))
        self.loop = int(self.image.info.get("loop", 0))
        count = int(getattr(self.image, "n_frames", 1))
        self.durations = tuple(self._duration(i) for i in range(self.skip, count))

    def _duration(self, index: int) -> int:
        self._decode(index)
        return round(self.image.info.get("duration", 0))

    def _decode(self, index: int) -> None:
        try:
            self.image.seek(index)
            self.image.load()
        except DAMAGE as error:
            raise _damaged(self.path, error) from error

    def frame(self, index: int) -> NDArray[Any]:
        """Decode one complete frame.

        Args:
            index: frame number, from 0.

        Returns:
            (H, W, C), uint8.
        """
        self._decode(index + self.skip)
        return _array(self.image, self.mode)


def count_frames(path: Path, format_: str) -> int:
    """Number of frames in a file.

    Args:
        path: path of the file.
        format_: "png" or "avif".

    Returns:
        At least 1.
    """
    with path.open("rb") as file:
        image = _load(path, format_, file)
        return int(getattr(image, "n_frames", 1)) - int(bool(image.info.get("default_image")))


def animation_header(path: Path, format_: str) -> tuple[int, int]:
    """Read the number of channels and the loop count from an animation's header.

    Args:
        path: path of the file.
        format_: "png" or "avif".

    Returns:
        Number of channels, 1 to 4, and number of times it plays, 0 for forever.
    """
    with path.open("rb") as file:
        image = _load(path, format_, file)
        return len(_plain(image)), int(image.info.get("loop", 0))


def read_bmp(path: Path, channels: int) -> NDArray[Any]:
    """Read the pixels of a BMP.

    Args:
        path: path of the file.
        channels: number of channels to convert to.

    Returns:
        (H, W, C), uint8.

    Raises:
        PictureError: if the file is damaged or truncated.
    """
    with path.open("rb") as file:
        image = _load(path, "bmp", file)
        try:
            image.load()
        except DAMAGE as error:
            raise _damaged(path, error) from error
    return _array(image, MODES[channels])


def _array(image: Any, mode: str) -> NDArray[Any]:
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def bmp_info(path: Path) -> Info:
    """Read the header of a BMP.

    Args:
        path: path of the file.

    Returns:
        The same as `probe`.
    """
    with path.open("rb") as file:
        image = _load(path, "bmp", file)
        return Info(image.width, image.height, len(_plain(image)), 8, 1, "bmp")


def bmp_metadata(path: Path) -> Metadata:
    """Read a BMP's resolution and, for its newest header version, its colour profile.

    Args:
        path: path of the file.

    Returns:
        The metadata.
    """
    with path.open("rb") as file:
        image = _load(path, "bmp", file)
        dpi = image.info.get("dpi")
        origin = {"P": "palette", "1": "bilevel"}.get(image.mode, "")
        icc = None
        file.seek(0)
        head = file.read(138)
        if len(head) == 138 and head[14] == 124 and head[70:74] == b"DEBM":
            offset, size = struct.unpack_from("<II", head, 126)
            file.seek(14 + offset)
            icc = file.read(size) or None
    return Metadata(
        icc=icc, dpi=(round(dpi[0], 2), round(dpi[1], 2)) if dpi and min(dpi) > 0 else None, format="bmp", origin=origin
    )


def write_animation(
    path: Path, format_: str, frames: list[NDArray[Any]], metadata: Metadata, quality: int | None
) -> None:
    """Write an animated PNG or AVIF; all frames are in memory.

    Args:
        path: file to write.
        format_: "png" or "avif".
        frames: frames, (H, W, C) each, uint8.
        metadata: metadata with one duration per frame.
        quality: quality for AVIF, 1 to 100.
    """
    from PIL import Image, PngImagePlugin

    images = [Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame) for frame in frames]
    options: dict[str, Any] = {"append_images": images[1:], "duration": list(metadata.durations), "save_all": True}
    if metadata.icc:
        options["icc_profile"] = metadata.icc
    if metadata.exif:
        options["exif"] = metadata.exif
    if format_ == "png":
        options |= {"loop": metadata.loop, "compress_level": 3, "dpi": metadata.dpi or (72, 72)}
        info = PngImagePlugin.PngInfo()
        for keyword, text in metadata.comments:
            info.add_text(keyword, text)
        if metadata.xmp:
            info.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
        options["pnginfo"] = info
    else:
        options |= {"quality": 90 if quality is None else quality, "subsampling": "4:4:4", "speed": 8}
        if metadata.xmp:
            options["xmp"] = metadata.xmp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images[0].save(path, format_.upper(), **options)


def plain(image: Any) -> Any:
    """Convert a CMYK or Lab Pillow image to RGB, in the same way as a file of this kind.

    Args:
        image: Pillow image in any mode.

    Returns:
        The image itself, or for CMYK an RGB image, converted through its profile or else a common press profile.
    """
    if image.mode != "CMYK":
        return image
    from PIL import Image

    from . import colour
    from ._vips import set_blob, vips

    inks = np.ascontiguousarray(np.asarray(image))
    made = vips().Image.new_from_memory(inks, image.width, image.height, 4, "uchar").copy(interpretation="cmyk")
    icc = image.info.get("icc_profile")
    if colour.space(icc) == "cmyk":
        set_blob(made, "icc-profile-data", icc)
    rgb = np.frombuffer(colour.image_to_srgb(made).write_to_memory(), np.uint8)
    return Image.fromarray(rgb.reshape(image.height, image.width, 3))
