"""Develop DNG, the open raw format of cameras, by rawpy (extra `raw`), which brings LibRaw.

The mosaic is interpolated (LibRaw's default, directed by homogeneity), balanced by the white that the camera noted
(daylight where it noted none), brought to sRGB by the colour matrix of the file, exposed by the file's baseline
exposure, and turned upright: 16 bits with sRGB's curve, without a brightening of the software's own, so the same scene
always comes out the same. Highlights beyond the sensor's white are clipped. Lens corrections that a file describes are
not applied; they are named in `Metadata.left_out`.

Source: Adobe, Digital Negative Specification 1.7.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from . import exif, xmp
from .errors import PictureError
from .metadata import Info, Metadata
from .needs import needed
from .tiff import Tiff

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .tiff import Entry

__all__ = ["info", "metadata", "pixels"]

MAKE, MODEL, SUB_IFDS, XMP = 271, 272, 330, 700
UNIQUE_MODEL, COLOR_MATRIX, BASELINE_EXPOSURE = 50708, 50721, 50730
OPCODES = frozenset((51008, 51009, 51022))
SRGB_CURVE = (2.4, 12.92)  # power, and slope near black
SHIFTS = (0.25, 8.0)  # what LibRaw can expose by
UNREAD = "LibRaw does not decode its samples"
_SIDEWAYS = (5, 6)  # LibRaw's quarter turns


def _open(path: Path) -> Any:
    """The file in LibRaw, its header read; close it."""
    rawpy = needed("dng", path)
    try:
        with path.open("rb") as file:
            raw = rawpy.imread(file)
    except rawpy.LibRawFileUnsupportedError as error:
        raise _unknown(path, UNREAD) from error
    except rawpy.LibRawError as error:
        raise _damaged(path, error) from error
    # LibRaw's own answer about the file's matrix would decode the pixels.
    if raw.num_colors > 1 and COLOR_MATRIX not in _tags(path)[0] and not np.any(raw.rgb_xyz_matrix):
        raw.close()
        raise _unknown(path, "it holds no colour matrix, and LibRaw knows none for it")
    return raw


def _damaged(path: Path, error: Exception) -> PictureError:
    text = " ".join(str(error.args[0] if error.args else error).strip("b'").split())
    return PictureError(path, f"the file is damaged or truncated ({text})", "copy or download it again")


def _unknown(path: Path, why: str) -> PictureError:
    root, _ = _tags(path)
    names = [root[tag].raw.rstrip(b"\0").decode("ascii", "replace") for tag in (MAKE, MODEL) if tag in root]
    if UNIQUE_MODEL in root and not names:
        names = [root[UNIQUE_MODEL].raw.rstrip(b"\0").decode("ascii", "replace")]
    camera = " ".join(names) or "a camera without a name"
    return PictureError(
        path,
        f"foveal develops DNG files whose colours are described, got one of {camera} that cannot be developed ({why})",
        "convert it anew with Adobe DNG Converter, or develop it to TIFF with the camera's own software",
    )


def _tags(path: Path) -> tuple[dict[int, Entry], frozenset[int]]:
    """Entries of the first directory by their tags, and all tags of it and of the directories inside it."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tiff = Tiff(data)
            root = {entry.tag: entry for entry in tiff.entries(tiff.first)}
            inside = tiff.integers(root[SUB_IFDS]) if SUB_IFDS in root else ()
            return root, frozenset(root).union(*({one.tag for one in tiff.entries(at)} for at in inside))
    except (ValueError, KeyError, struct.error, OSError):
        return {}, frozenset()


def _shift(path: Path) -> float:
    """Factor of light that the file's baseline exposure asks for."""
    root, _ = _tags(path)
    if BASELINE_EXPOSURE not in root:
        return 1.0
    with path.open("rb") as file:
        order = "<" if file.read(2) == b"II" else ">"
    try:
        over, under = struct.unpack(order + "ii", root[BASELINE_EXPOSURE].raw)
        return min(max(2.0 ** (over / under), SHIFTS[0]), SHIFTS[1])
    except (struct.error, ZeroDivisionError, OverflowError):
        return 1.0


def info(path: Path) -> Info:
    """Read the header.

    Args:
        path: path of the file.

    Returns:
        The same as `probe`.

    Raises:
        PictureError: if rawpy is not installed, or cannot develop the file.
    """
    with _open(path) as raw:
        wide, high = raw.sizes.iwidth, raw.sizes.iheight
        if raw.sizes.flip in _SIDEWAYS:
            wide, high = high, wide
        return Info(wide, high, 1 if raw.num_colors == 1 else 3, 16, 1, "dng")


def metadata(path: Path) -> Metadata:
    """Collect the metadata.

    Args:
        path: path of the file.

    Returns:
        The metadata.
    """
    root, tags = _tags(path)
    camera = exif.from_tiff(path)
    packet, orphans = xmp.orphans_removed(root[XMP].raw if XMP in root else b"")
    lost = ["lens corrections (opcodes)"] if tags & OPCODES else []
    return Metadata(
        exif=exif.upright(camera) if camera else None,
        xmp=xmp.upright(packet) if packet else None,
        format="dng",
        bits=16,
        depth=16,
        left_out=tuple(dict.fromkeys([*orphans, *lost])),
    )


def pixels(path: Path, info: Info) -> NDArray[Any]:
    """Develop the picture.

    Args:
        path: path of the file.
        info: content of its header.

    Returns:
        (H, W, C), upright, uint16, sRGB.

    Raises:
        PictureError: if the file is damaged or truncated, or stores its samples as LibRaw does not read them.
    """
    rawpy = needed("dng", path)
    with _open(path) as raw:
        try:
            made: NDArray[Any] = raw.postprocess(
                use_camera_wb=True,
                output_bps=16,
                output_color=rawpy.ColorSpace.sRGB,
                gamma=SRGB_CURVE,
                no_auto_bright=True,
                adjust_maximum_thr=0.0,  # else white would depend on the brightest pixel of each picture
                exp_shift=_shift(path),
            )
        except rawpy.LibRawFileUnsupportedError as error:
            raise _unknown(path, UNREAD) from error
        except rawpy.LibRawError as error:
            raise _damaged(path, error) from error
    made = np.ascontiguousarray(made.reshape(*made.shape[:2], -1)[..., : info.channels])
    if made.shape != (info.height, info.width, info.channels):
        raise PictureError(
            path,
            f"its pixels are not square or its header is damaged ({info.width} × {info.height} became "
            f"{made.shape[1]} × {made.shape[0]})",
            "develop it to TIFF first",
        )
    return made
