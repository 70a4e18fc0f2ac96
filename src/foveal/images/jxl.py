"""Read JPEG XL pictures by imagecodecs and, for colour profiles, pillow-jxl-plugin (extra `jxl`).

imagecodecs decodes all depths but says nothing about colours; pillow-jxl-plugin gives the profile of the decoded
pixels, but decodes 8 bits only. Neither writes a profile, so foveal does not write JPEG XL.

A lossy file with a profile is decoded to linear sRGB, since libjxl alone does not convert to arbitrary profiles; it
becomes sRGB here, and the profile is named in `Metadata.left_out`.

Source: ISO/IEC 18181-2 (boxes of EXIF and XMP, and their compression by Brotli).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import colour, exif, xmp
from .alpha import unpremultiply
from .cicp import plain
from .errors import PictureError
from .jxl_header import Header, boxes, codestream, read_header
from .metadata import Info, Metadata
from .needs import needed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["info", "metadata", "pixels"]

_DEPTHS = {8: 0, 10: 1, 12: 2}  # numbers of bits with a code of two bits


def _damaged(path: Path, why: object) -> PictureError:
    text = " ".join(str(why).split()) or type(why).__name__
    return PictureError(path, f"the file is damaged or truncated ({text})", "copy or download it again")


def _open(path: Path) -> tuple[Header, bytes]:
    """The header and the file; also checks that the pixels can be read without loss."""
    needed("jxl", path)
    data = path.read_bytes()
    try:
        head = read_header(data)
    except ValueError as error:
        raise _damaged(path, error) from error
    if head.animated:
        raise PictureError(path, "it is an animated JPEG XL, which foveal does not read",
                           "save its frames as single pictures first, for example with djxl")  # fmt: skip
    if head.floating or head.bits > 16:
        raise PictureError(
            path,
            f"its samples have {head.bits} bits{', floating-point' if head.floating else ''}; foveal reads up to 16, "
            "unsigned",
            "convert it to 16 bits first, choosing which values mean black and white",
        )
    if "black ink" in head.others:
        raise PictureError(path, "its colours are CMYK; foveal reads grey and RGB JPEG XL", "convert it to RGB first")
    return head, data


def info(path: Path) -> Info:
    """Read the header.

    Args:
        path: path of the file.

    Returns:
        The same as `probe`.

    Raises:
        PictureError: if a library is not installed, or the file is damaged or of a kind that is not supported.
    """
    head, _ = _open(path)
    return Info(head.width, head.height, (1 if head.grey else 3) + head.alpha, 8 if head.bits <= 8 else 16, 1, "jxl")


def _converted(head: Header) -> bool:
    """Whether decoders give linear sRGB instead of the file's own colours."""
    return head.xyb and head.profiled


def _profile(path: Path, head: Header, data: bytes) -> bytes | None:
    """The profile of the decoded pixels; None for sRGB and for colours that have code points."""
    if head.cicp is not None:
        return None
    from PIL import Image

    decoder = needed("jxl", path, "pillow_jxl").Decoder(num_threads=1)
    try:
        is_jpeg, _, decoded, icc = decoder(data)[:4]
    except Exception as error:  # whatever its Rust code raises
        raise _damaged(path, error) from error
    if is_jpeg:  # a JPEG packed without loss, which comes out as a JPEG
        import io

        icc = Image.open(io.BytesIO(decoded)).info.get("icc_profile", icc)
    return bytes(icc) if icc else None


def metadata(path: Path) -> Metadata:
    """Collect the metadata.

    Args:
        path: path of the file.

    Returns:
        The metadata.
    """
    head, data = _open(path)
    camera, packet, left_out = b"", b"", list(head.others)
    for kind, content in _contents(path, data):
        if kind == b"Exif":
            camera = _tiff(content)
        elif kind == b"xml ":
            packet = content
        elif kind == b"jumb":
            left_out.append("content credentials or other JUMBF data")
        elif kind == b"jhgm":
            left_out.append("gain map")
    packet, orphans = xmp.orphans_removed(packet)
    if _converted(head):
        left_out.append("colour profile (the pixels become sRGB)")
    return Metadata(
        icc=None if _converted(head) else _profile(path, head, data),
        exif=exif.upright(camera) if camera else None,
        xmp=xmp.upright(packet) if packet else None,
        dpi=exif.dpi(camera) if camera else None,
        format="jxl",
        bits=8 if head.bits <= 8 else 16,
        depth=head.bits,
        lossless=not head.xyb,
        cicp=None if plain(head.cicp) else head.cicp,
        left_out=tuple(dict.fromkeys([*orphans, *left_out])),
    )


def _tiff(content: bytes) -> bytes:
    """EXIF as a TIFF structure; some writers leave out the offset that stands before it, or put JPEG's prefix there."""
    content = content.removeprefix(b"Exif\0\0")
    if content[:4] in (b"II*\0", b"MM\0*"):
        return content
    return content[4 + int.from_bytes(content[:4], "big") :].removeprefix(b"Exif\0\0")


def _contents(path: Path, data: bytes) -> list[tuple[bytes, bytes]]:
    """Boxes with metadata, decompressed."""
    found = []
    for kind, start, end in boxes(data):
        content = data[start:end]
        inner = content[:4] if kind == b"brob" else kind
        if inner not in (b"Exif", b"xml ", b"jumb", b"jhgm"):
            continue
        if kind == b"brob":
            try:
                content = bytes(needed("jxl", path).brotli_decode(content[4:]))
            except RuntimeError as error:
                raise _damaged(path, error) from error
        found.append((inner, content))
    return found


def _finer(data: bytes, head: Header) -> bytes:
    """The codestream with 12 bits in its header: linear values of 8 bits would show steps in the dark.

    The lossy pixels are not stored in any depth; this one is only what decoders give them in.
    """
    changed = bytearray(codestream(data))
    for i in range(2):
        at, bit = divmod(head.depth_at + i, 8)
        changed[at] = changed[at] & ~(1 << bit) | (_DEPTHS[12] >> i & 1) << bit
    return bytes(changed)


def pixels(path: Path, info: Info) -> NDArray[Any]:
    """Decode the picture.

    Args:
        path: path of the file.
        info: content of its header.

    Returns:
        (H, W, C), upright, uint8 or uint16 of the full range.

    Raises:
        PictureError: if the file is damaged or truncated.
    """
    head, data = _open(path)
    bits = head.bits
    if _converted(head) and head.depth_at and bits in _DEPTHS:
        data, bits = _finer(data, head), 12
    try:
        decoded = np.asarray(needed("jxl", path).jpegxl_decode(data, numthreads=1))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise _damaged(path, error) from error
    decoded = decoded.reshape(*decoded.shape[:2], -1)[..., : info.channels]
    if decoded.shape != (info.height, info.width, info.channels):
        raise _damaged(path, f"its header promises {info.width} × {info.height}, its pixels are {decoded.shape[1]} × "
                       f"{decoded.shape[0]}")  # fmt: skip
    decoded = _full_range(decoded, bits)
    if head.premultiplied:
        decoded = unpremultiply(decoded)
    if _converted(head) and (icc := _profile(path, head, data)):
        decoded = colour.rows_to_srgb(decoded, icc)
        if info.channels <= 2:
            decoded = np.concatenate([decoded[..., :1], decoded[..., 3:]], axis=2)
        if info.bits == 8 and decoded.dtype == np.uint16:
            decoded = ((decoded.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.ascontiguousarray(decoded)


def _full_range(decoded: NDArray[Any], bits: int) -> NDArray[Any]:
    """Values of the file's own depth as those of 8 or 16 bits."""
    if bits in (8, 16):
        return decoded
    top, most = (255 if bits < 8 else 65535), (1 << bits) - 1
    return ((decoded.astype(np.uint32) * top + most // 2) // most).astype(np.uint8 if bits < 8 else np.uint16)
