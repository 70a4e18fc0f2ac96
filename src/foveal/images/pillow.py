"""What Pillow reads and writes better than libvips: BMP, animated PNG and animated AVIF.

Pillow's limit on pixels is passed by on purpose (its classes are called directly): foveal's own limit was checked.
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

# What Pillow's decoders raise at bytes that make no sense.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, IndexError, KeyError)
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def _load(path: Path, format_: str, file: Any) -> Any:
    """Read the header; `file` stays the caller's to close."""
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
        path: the file.
        format_: "png" or "avif".
        channels: to convert to.

    Raises:
        PictureError: the file is damaged or truncated.
    """

    def __init__(self, path: Path, format_: str, channels: int) -> None:
        self.path = path
        self.mode = MODES[channels]
        # In memory, so that nothing is left open while the frames wait to be asked for; animations are small files.
        self.image = _load(path, format_, io.BytesIO(path.read_bytes()))
        # A PNG may hold a picture for readers without animation; it is no frame.
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
        """One frame, complete.

        Args:
            index: from 0.

        Returns:
            (H, W, C), uint8.
        """
        self._decode(index + self.skip)
        return _array(self.image, self.mode)


def count_frames(path: Path, format_: str) -> int:
    """Frames in a file.

    Args:
        path: the file.
        format_: "png" or "avif".

    Returns:
        1 or more.
    """
    with path.open("rb") as file:
        image = _load(path, format_, file)
        return int(getattr(image, "n_frames", 1)) - int(bool(image.info.get("default_image")))


def animation_header(path: Path, format_: str) -> tuple[int, int]:
    """What an animation's header says of its frames.

    Args:
        path: the file.
        format_: "png" or "avif".

    Returns:
        Channels, 1 to 4; and how often it plays, 0 for ever.
    """
    with path.open("rb") as file:
        image = _load(path, format_, file)
        return len(_plain(image)), int(image.info.get("loop", 0))


def read_bmp(path: Path, channels: int) -> NDArray[Any]:
    """A BMP's pixels.

    Args:
        path: the file.
        channels: to convert to.

    Returns:
        (H, W, C), uint8.

    Raises:
        PictureError: the file is damaged or truncated.
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
    """What a BMP's header promises.

    Args:
        path: the file.

    Returns:
        The same as `probe`.
    """
    with path.open("rb") as file:
        image = _load(path, "bmp", file)
        return Info(image.width, image.height, len(_plain(image)), 8, 1, "bmp")


def bmp_metadata(path: Path) -> Metadata:
    """A BMP's resolution and, in the newest of its headers, its colour profile.

    Args:
        path: the file.

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
        path: to write.
        format_: "png" or "avif".
        frames: (H, W, C) each, uint8.
        metadata: with one duration per frame.
        quality: of AVIF, 1 to 100.
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
    """A Pillow image of inks or Lab as RGB, by the same way as a file of this kind.

    Args:
        image: in any mode.

    Returns:
        The image itself; for CMYK one in RGB, converted through its profile, or without one a common press profile.
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
