"""Read pictures: pixels upright in grey or RGB, and everything that belongs to them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import colour, exif, xmp
from ._vips import blob, reason, vips
from .errors import PictureError
from .formats import FORMATS, sniff
from .gif import is_whole
from .metadata import Info, Metadata
from .picture import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LIMIT_PIXELS", "Reading", "probe", "read"]

LIMIT_PIXELS = 400_000_000

LOADERS = {"png": "pngload", "jpeg": "jpegload", "webp": "webpload", "tiff": "tiffload", "avif": "heifload",
           "gif": "gifload"}  # fmt: skip
# numpy.rot90 counter-clockwise turns and whether to mirror first, by EXIF orientation.
TURNS = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True),
         8: (1, False)}  # fmt: skip


class Frames(Protocol):
    """What decodes the frames of one open file."""

    def frame(self, index: int) -> NDArray[Any]:
        """Frame `index` as stored, (H, W, C)."""
        ...


class Reading:
    """An open picture: what its header says, and its frames on demand.

    A still picture is decoded when it is opened, so a truncated file never gets further than `read`. The frames of an
    animation are decoded one at a time; asking in order is cheap, going back starts over.

    Args:
        path: the file.
        info: what its header says.
        metadata: everything that belongs to it.
        frames: decodes it.
        turn: EXIF orientation to apply.
    """

    def __init__(self, path: Path, info: Info, metadata: Metadata, frames: Frames, turn: int) -> None:
        self.path = path
        self.info = info
        self.metadata = metadata
        self.width, self.height, self.channels = info.width, info.height, info.channels
        self.frames = info.frames
        self._frames = frames
        self._turn = turn

    def frame(self, index: int = 0) -> Picture:
        """One frame, composed over the frames before it where the format stores differences.

        Args:
            index: from 0.

        Returns:
            The picture, with this reading's metadata.

        Raises:
            IndexError: there is no such frame.
            PictureError: the frame is damaged or truncated.
        """
        if not 0 <= index < self.frames:
            raise IndexError(f"frame must be in 0…{self.frames - 1} for {self.path}, got {index}")
        pixels = _upright(self._frames.frame(index), self._turn)
        return Picture(pixels, pixels.shape[2] in (2, 4), self.metadata)


def probe(path: str | Path) -> Info:
    """What a picture's header promises, without decoding it.

    Args:
        path: of the file.

    Returns:
        Size after orientation, channels, bits, frames and format.

    Raises:
        PictureError: no picture that foveal reads.
    """
    return _open(Path(path)).info


def read(path: str | Path, *, limit_pixels: int = LIMIT_PIXELS) -> Reading:
    """Open a picture.

    Args:
        path: of the file.
        limit_pixels: refuse pictures whose header promises more pixels a frame than this, before decoding anything.

    Returns:
        The open picture; a still is decoded already.

    Raises:
        PictureError: missing, a folder, empty, no picture, damaged, truncated, too large, or of a kind that cannot be
            read without loss.
    """
    opened = _open(Path(path))
    info = opened.info
    if info.width * info.height > limit_pixels:
        raise PictureError(
            path,
            f"its header promises {info.width} × {info.height} = {info.megapixels:.0f} megapixels, "
            f"more than the limit of {limit_pixels / 1e6:.0f}",
            "if you trust the file, raise the limit with limit_pixels (on the command line, --limit-megapixels)",
        )
    return opened.decode()


@dataclass
class _Opened:
    """A file whose header was read."""

    path: Path
    info: Info
    image: Any  # a lazy pyvips image of the first frame; None where Pillow reads the file
    turn: int
    animated: bool
    pages: int

    def decode(self) -> Reading:
        from .pillow import PillowFrames, bmp_metadata, read_bmp

        format_, info = self.info.format, self.info
        if format_ == "bmp":
            pixels = read_bmp(self.path, info.channels)
            return Reading(self.path, info, bmp_metadata(self.path), _Still(pixels), 1)
        metadata = _metadata(self.path, format_, self.image, info)
        if self.pages > info.frames:
            metadata = _replace(metadata, left_out=self.pages - info.frames)
        if self.animated and format_ in ("png", "avif"):
            played = PillowFrames(self.path, format_, info.channels)
            metadata = _replace(metadata, durations=played.durations, loop=played.loop)
            return Reading(self.path, info, metadata, played, 1)
        if info.frames > 1 and format_ == "tiff":
            return Reading(self.path, info, metadata, _Pages(self.path, metadata), self.turn)
        if format_ == "gif" and not is_whole(self.path):
            raise _damaged(self.path, "it ends inside a frame")
        if info.frames > 1:
            whole = _header(self.path, format_, n=-1)
            delays = tuple(int(delay) for delay in whole.get("delay"))[: info.frames]
            metadata = _replace(metadata, durations=delays, loop=int(whole.get("loop")))
            return Reading(self.path, info, metadata, _Roll(self.path, format_, metadata, info), 1)
        pixels = _decode(self.path, _convert(self.path, self.image), metadata.depth)
        if format_ == "gif" and pixels.shape[2] == 4 and pixels[..., 3].min() == 255:
            # Many GIF writers reserve a transparent colour that no pixel uses.
            pixels = np.ascontiguousarray(pixels[..., :3])
            info = _replace(info, channels=3)
        # Turned once, here, so that the picture as stored can be let go.
        return Reading(self.path, info, metadata, _Still(_upright(pixels, self.turn)), 1)


def _replace(instance: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(instance, **changes)


@dataclass
class _Still:
    """A picture already decoded."""

    pixels: NDArray[Any]

    def frame(self, index: int) -> NDArray[Any]:  # noqa: ARG002  one of several that decode frames
        return self.pixels


@dataclass
class _Pages:
    """Pages of a TIFF document, each decoded on its own."""

    path: Path
    metadata: Metadata

    def frame(self, index: int) -> NDArray[Any]:
        image = _convert(self.path, _header(self.path, "tiff", page=index))
        return _decode(self.path, image, self.metadata.depth)


@dataclass
class _Roll:
    """Frames of a GIF or WebP animation, which libvips lays one below the other and decodes downwards."""

    path: Path
    format: str
    metadata: Metadata
    info: Info
    roll: Any = None
    next: int = 0

    def frame(self, index: int) -> NDArray[Any]:
        wide, high = self.info.width, self.info.height
        if self.roll is None or index < self.next:  # decoding goes one way only
            self.roll = _convert(self.path, _header(self.path, self.format, n=-1))
        self.next = index + 1
        return _decode(self.path, self.roll.crop(0, index * high, wide, high), self.metadata.depth)


def _open(path: Path) -> _Opened:
    """Check the file and read its header."""
    format_, head = _identify(path)
    if format_ == "bmp":
        from .pillow import bmp_info

        return _Opened(path, bmp_info(path), None, 1, False, 1)
    image = _header(path, format_)
    turn = int(image.get("orientation")) if image.get_typeof("orientation") else 1
    # AVIF turns its pixels by a box of its own, which libheif obeys; EXIF in AVIF only repeats it.
    turn = turn if turn in TURNS and format_ != "avif" else 1
    pages = int(image.get("n-pages")) if image.get_typeof("n-pages") else 1
    frames, animated = pages, False
    if format_ == "png":
        frames = _apng_frames(head)
        animated = frames > 1
    elif format_ == "avif":
        animated = head[8:12] == b"avis"
        frames = _avif_frames(path) if animated else 1
        pages = frames
    elif format_ == "tiff" and pages > 1:
        frames = pages if _pages_alike(path, image, pages) else 1
    channels = _channels(path, image)
    deep = image.format == "ushort"
    if animated and deep:
        raise PictureError(
            path,
            f"it is an animated {FORMATS[format_].label} of more than 8 bits, which foveal cannot read without loss",
            "save its frames as single pictures first",
        )
    if animated:
        from .pillow import animation_channels

        channels = animation_channels(path, format_)
    wide, high = (image.height, image.width) if turn >= 5 else (image.width, image.height)
    info = Info(wide, high, channels, 16 if deep else 8, frames, format_)
    return _Opened(path, info, image, turn, animated, max(pages, frames))


def _identify(path: Path) -> tuple[str, bytes]:
    """The format, and the file's first bytes: enough for everything a PNG says before its pixels."""
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except FileNotFoundError as error:
        raise PictureError(path, "there is no such file", "check the name and the folder") from error
    except IsADirectoryError as error:
        raise PictureError(path, "it is a folder, not a picture", "name a file in it, or let the command read the "
                           "whole folder") from error  # fmt: skip
    except OSError as error:
        if path.is_dir():  # Windows calls a folder a lack of permission
            raise PictureError(path, "it is a folder, not a picture", "name a file in it") from error
        raise PictureError(path, f"it cannot be opened ({error.strerror})", "check that you may read it") from error
    if not head:
        raise PictureError(path, "the file is empty (zero bytes)", "copy or download it again")
    found = sniff(head)
    if found is None:
        known = ", ".join(one.label for one in FORMATS.values())
        raise PictureError(path, "it is not a picture that foveal reads", f"give one of {known}")
    return found, head


def _header(path: Path, format_: str, **options: int) -> Any:
    """A lazy image; nothing but the header is read until pixels are asked for."""
    if format_ in {"avif", "png"}:
        options |= {"unlimited": True}  # our own limit is stricter and has a message that helps
    try:
        return getattr(vips().Image, LOADERS[format_])(
            str(path), access="sequential", fail_on="error", **options
        )  # fmt: skip
    except vips().Error as error:
        raise _damaged(path, reason(error)) from error


def _damaged(path: Path, why: str) -> PictureError:
    return PictureError(path, f"the file is damaged or truncated ({why})", "copy or download it again")


def _channels(path: Path, image: Any) -> int:
    """Channels after conversion; the check that the kind of pixels can be read without loss."""
    if image.format not in ("uchar", "ushort") and image.interpretation not in ("lab", "labs"):
        raise PictureError(
            path,
            f"its samples are of the kind {image.format}; foveal reads 8-bit and 16-bit unsigned ones",
            "convert it to 16 bits first, choosing which values mean black and white",
        )
    if image.interpretation == "cmyk":
        return 4 if image.bands > 4 else 3
    if image.bands > 4:
        raise PictureError(path, f"it has {image.bands} channels; foveal reads 1 to 4",
                           "save the channels you want as a picture of their own")  # fmt: skip
    return int(image.bands)


def _convert(path: Path, image: Any) -> Any:
    """To grey or RGB."""
    channels = _channels(path, image)
    if image.interpretation == "cmyk":
        if colour.space(blob(image, "icc-profile-data")) not in ("", "cmyk"):
            image = image.copy()
            image.remove("icc-profile-data")
        image = colour.image_to_srgb(image)
    elif image.interpretation in ("lab", "labs"):
        image = image.colourspace("rgb16" if image.interpretation == "labs" else "srgb")
    return image[:channels] if image.bands > channels else image


def _decode(path: Path, image: Any, depth: int) -> NDArray[Any]:
    """All pixels, (H, W, C)."""
    try:
        data = image.write_to_memory()
    except vips().Error as error:
        raise _damaged(path, reason(error)) from error
    pixels: NDArray[Any] = np.frombuffer(data, np.uint16 if image.format == "ushort" else np.uint8)
    pixels = pixels.reshape(image.height, image.width, image.bands)
    if depth in (10, 12):
        # libvips shifts these up and leaves the low bits 0, so white would be 65,472; repeating the high bits below
        # makes white 65,535 and is undone exactly by shifting back.
        pixels = pixels | (pixels >> depth)
    return pixels


def _upright(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    turns, mirror = TURNS[turn]
    if mirror:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _metadata(path: Path, format_: str, image: Any, info: Info) -> Metadata:
    """Everything but the pixels."""
    camera = exif.from_tiff(path) if format_ == "tiff" else blob(image, "exif-data")
    # PNG counts dots per metre, TIFF in single precision: two decimals take 300 back to 300.
    dpi: tuple[float, float] | None = (round(image.xres * 25.4, 2), round(image.yres * 25.4, 2))
    if image.xres == 1.0 and image.yres == 1.0:  # libvips' way to say that nothing is known
        dpi = exif.dpi(camera) if camera else None
    packet = blob(image, "xmp-data")
    icc, origin = blob(image, "icc-profile-data"), ""
    if image.interpretation in ("cmyk", "lab", "labs"):
        icc, origin = colour.srgb_profile(), image.interpretation.rstrip("s")
    elif image.get_typeof("palette") and image.get("palette"):
        origin = "palette"
    stated = int(image.get("bits-per-sample")) if image.get_typeof("bits-per-sample") else info.bits
    if stated == 1 and not origin:
        origin = "bilevel"
    compression = str(image.get("compression")) if image.get_typeof("compression") else ""
    return Metadata(
        icc=icc,
        exif=exif.upright(camera) if camera else None,
        xmp=xmp.upright(packet) if packet else None,
        iptc=blob(image, "iptc-data") if format_ == "jpeg" else None,
        dpi=dpi,
        format=format_,
        bits=info.bits,
        depth=stated if format_ == "avif" and stated > 8 else info.bits,
        lossless=_lossless(path, format_, compression),
        comments=_comments(image),
        origin=origin,
    )


def _comments(image: Any) -> tuple[tuple[str, str], ...]:
    """PNG's texts; those outside ASCII are left, because libvips does not say which of two encodings they are in."""
    found = []
    for name in image.get_fields():
        if name.startswith("png-comment-"):
            try:
                text = str(image.get(name))
            except UnicodeDecodeError:
                continue
            if text.isascii():
                found.append((name.split("-", 3)[3], text))
    return tuple(found)


def _lossless(path: Path, format_: str, compression: str) -> bool:
    if format_ == "webp":
        with path.open("rb") as file:
            head = file.read(1 << 16)
        lossless, lossy = head.find(b"VP8L"), head.find(b"VP8 ")
        return lossless >= 0 and (lossy < 0 or lossless < lossy)
    return format_ in ("png", "tiff", "gif") and compression not in ("jpeg", "webp")


def _apng_frames(head: bytes) -> int:
    """Frames that a PNG announces before its pixels."""
    at = 8
    while at + 12 <= len(head):
        (length,), kind = struct.unpack_from(">I", head, at), head[at + 4 : at + 8]
        if kind == b"acTL" and at + 12 <= len(head):
            return max(1, int(struct.unpack_from(">I", head, at + 8)[0]))
        if kind == b"IDAT":
            break
        at += 12 + length
    return 1


def _avif_frames(path: Path) -> int:
    from .pillow import count_frames

    return count_frames(path, "avif")


def _pages_alike(path: Path, first: Any, pages: int) -> bool:
    """Whether all pages of a document have the size and kind of the first."""
    kind = (first.width, first.height, first.bands, first.format, first.interpretation)
    for index in range(1, pages):
        page = _header(path, "tiff", page=index)
        if (page.width, page.height, page.bands, page.format, page.interpretation) != kind:
            return False
    return True
