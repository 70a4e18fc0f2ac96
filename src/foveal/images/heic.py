"""Read HEIC pictures by pillow-heif (extra `heic`); libvips' build here decodes AV1 only.

The largest picture of a file is its primary one; the others, depth maps, mattes and gain maps beside it are named in
`Metadata.left_out`. Thumbnails are copies and are dropped. Rotation and mirroring are boxes of the file, which the
decoder applies; the orientation in EXIF only repeats them.

Source: ISO/IEC 23008-12 (HEIF).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import exif, xmp
from .alpha import unpremultiply
from .cicp import Cicp, plain
from .errors import PictureError
from .metadata import Info, Metadata
from .needs import needed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["info", "metadata", "pixels"]

# What pillow-heif raises for a file that it cannot read.
_DAMAGE = (ValueError, EOFError, SyntaxError, RuntimeError, OSError)
# Auxiliary pictures: a part of the URN that names their kind, and what users call them.
_AUXILIARY = (
    ("hdrgainmap", "gain map"),
    ("gainmap", "gain map"),
    ("portraiteffectsmatte", "portrait matte"),
    ("matte", "matte"),
    ("disparity", "depth map"),
    ("depth", "depth map"),
)
_SEQUENCES = (b"hevc", b"hevx", b"msf1")


def _open(path: Path) -> tuple[Any, int]:
    """The main picture, not decoded yet, and the number of pictures in the file."""
    heif = needed("heic", path)
    try:
        file = heif.open_heif(path, convert_hdr_to_8bit=False)
        return file[file.primary_index], len(file)
    except _DAMAGE as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: Exception) -> PictureError:
    text = " ".join(str(error).split()) or type(error).__name__
    if "nsupported" in text or "not supported" in text:
        return PictureError(path, f"it is of a kind that foveal cannot decode ({text})", "save it as PNG or TIFF first")
    return PictureError(path, f"the file is damaged or truncated ({text})", "copy or download it again")


def _channels(mode: str) -> int:
    name = mode.partition(";")[0]
    return {"L": 1, "I": 1, "LA": 2, "La": 2, "RGB": 3}.get(name, 4)


def info(path: Path) -> Info:
    """Read the header.

    Args:
        path: path of the file.

    Returns:
        The same as `probe`.

    Raises:
        PictureError: if pillow-heif is not installed, or cannot read the file.
    """
    image, _ = _open(path)
    wide, high = image.size
    return Info(wide, high, _channels(image.mode), 16 if ";16" in image.mode else 8, 1, "heic")


def metadata(path: Path) -> Metadata:
    """Collect the metadata.

    Args:
        path: path of the file.

    Returns:
        The metadata.
    """
    image, count = _open(path)
    said = image.info
    camera = said.get("exif") or b""
    camera = camera[6:] if camera.startswith(b"Exif\0\0") else camera
    packet, orphans = xmp.orphans_removed(said.get("xmp") or b"")
    icc, code = said.get("icc_profile") or None, None
    if icc is None and (colours := said.get("nclx_profile")):
        code = Cicp(int(colours["color_primaries"]), int(colours["transfer_characteristics"]))
    depth = int(said["bit_depth"])
    return Metadata(
        icc=icc,
        exif=exif.upright(camera) if camera else None,
        xmp=xmp.upright(packet) if packet else None,
        dpi=exif.dpi(camera) if camera else None,
        format="heic",
        bits=16 if ";16" in image.mode else 8,
        depth=depth,
        lossless=False,
        cicp=None if plain(code) else code,
        left_out=tuple(dict.fromkeys([*orphans, *_left_out(path, said, count)])),
    )


def _left_out(path: Path, said: dict[str, Any], count: int) -> list[str]:
    """Content besides the main picture."""
    found = [f"{count - 1} further picture{'s' if count > 2 else ''}"] if count > 1 else []
    if said.get("depth_images"):
        found.append("depth map")
    for kind in said.get("aux", {}):
        named = (name for part, name in _AUXILIARY if part in kind.lower())
        found.append(next(named, f"auxiliary picture ({kind.rpartition(':')[2] or 'unnamed'})"))
    if "content_light_level" in said or "mastering_display_colour_volume" in said:
        found.append("HDR metadata (light levels)")
    with path.open("rb") as file:
        if file.read(12)[8:] in _SEQUENCES:
            found.append("image sequence")
    found += [f"metadata of type {one.get('content_type') or one.get('type')}" for one in said.get("metadata", ())]
    return found


def pixels(path: Path, info: Info) -> NDArray[Any]:
    """Decode the main picture.

    Args:
        path: path of the file.
        info: content of its header.

    Returns:
        (H, W, C), upright, uint8 or uint16 of the full range.

    Raises:
        PictureError: if the file is damaged or truncated, or of a kind that is not supported.
    """
    image, _ = _open(path)
    try:
        decoded: NDArray[Any] = np.asarray(image)
    except _DAMAGE as error:
        raise _failed(path, error) from error
    decoded = decoded.reshape(decoded.shape[0], decoded.shape[1], -1)
    if decoded.shape != (info.height, info.width, info.channels):
        raise PictureError(
            path,
            f"the file is damaged (its header promises {info.width} × {info.height}, its pixels are "
            f"{decoded.shape[1]} × {decoded.shape[0]})",
            "copy or download it again",
        )
    depth = int(image.info["bit_depth"])
    if info.bits == 16 and 8 < depth < 16:
        # The decoder shifts these up and leaves the low bits 0; with the high bits in their place white is 65,535.
        decoded = decoded | (decoded >> depth)
    return unpremultiply(decoded) if image.premultiplied_alpha else np.ascontiguousarray(decoded)
