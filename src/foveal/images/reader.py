"""Read pictures: upright pixels in grey or RGB, with all their metadata."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from . import tiff
from ._vips import blob
from .decode import channels_of, converted, decoded, turn_of, upright
from .errors import PictureError
from .formats import FORMATS
from .gather import gather
from .gif import is_whole
from .load import avif_depth, damaged, identify, load, load_page
from .metadata import Info, Metadata
from .picture import Picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["LIMIT_PIXELS", "Reading", "header", "probe", "read"]

LIMIT_PIXELS = 400_000_000


class Frames(Protocol):
    """Decoder of the frames of an open file."""

    def frame(self, index: int) -> NDArray[Any]:
        """Frame `index` as stored, (H, W, C)."""
        ...


class Reading:
    """An open picture: its header, and its frames on demand.

    A still picture is decoded when it is opened, so a truncated file fails in `read`. The frames of an animation are
    decoded one at a time; access in order is cheap, going back restarts decoding.

    Args:
        path: path of the file.
        info: content of its header.
        metadata: its metadata; that of the first page if pages differ.
        frames: decoder of its frames.
        turn: EXIF orientation to apply.
        pages: metadata of each page if they differ.
    """

    def __init__(
        self, path: Path, info: Info, metadata: Metadata, frames: Frames, turn: int, pages: tuple[Metadata, ...] = ()
    ) -> None:
        self.path = path
        self.info = info
        self.metadata = metadata
        self.pages = pages
        self.width, self.height, self.channels = info.width, info.height, info.channels
        self.frames = info.frames
        self._frames = frames
        self._turn = turn

    def frame(self, index: int = 0) -> Picture:
        """One frame, composited over the frames before it if the format stores differences.

        Args:
            index: frame number, from 0.

        Returns:
            The picture, with this reading's metadata, or its page's.

        Raises:
            IndexError: if there is no such frame.
            PictureError: if the frame is damaged or truncated.
        """
        if not 0 <= index < self.frames:
            raise IndexError(f"frame must be in 0…{self.frames - 1} for {self.path}, got {index}")
        pixels = upright(self._frames.frame(index), self._turn)
        metadata = self.pages[index] if self.pages else self.metadata
        return Picture(pixels, pixels.shape[2] in (2, 4) and not metadata.spare, metadata)

    def page(self, index: int) -> Reading:
        """One page of a document, or one frame, as a picture of its own.

        Args:
            index: page number, from 0.

        Returns:
            A reading with one frame, already decoded, and the page's metadata.

        Raises:
            IndexError: if there is no such page.
        """
        if not 0 <= index < self.frames:
            raise IndexError(f"page must be in 0…{self.frames - 1} for {self.path}, got {index}")
        metadata = self.metadata
        if isinstance(self._frames, _Pages):
            page = self._frames.pages[index]
            metadata = (page if index == 0 else replace(page, reduced=0)).metadata()
        info = self.info.pages[index] if self.info.pages else replace(self.info, frames=1)
        return Reading(self.path, info, replace(metadata, durations=()), _Still(self._frames.frame(index)), self._turn)


def probe(path: str | Path) -> Info:
    """Read a picture's header, without decoding pixels.

    Args:
        path: path of the file.

    Returns:
        Size after orientation, channels, bits, frames and format.

    Raises:
        PictureError: if it is not a picture that foveal reads.
    """
    return _open(Path(path)).info


def header(path: str | Path, *, limit_pixels: int = LIMIT_PIXELS) -> tuple[Info, tuple[Metadata, ...]]:
    """Read a picture's header and metadata, without decoding pixels.

    Args:
        path: path of the file.
        limit_pixels: largest number of pixels per frame; pictures whose header gives more are rejected.

    Returns:
        The result of `probe`, and the metadata, with frame durations of 0; one for each page if pages differ.

    Raises:
        PictureError: if it is not a picture that foveal reads, or is too large.
    """
    opened = _open(Path(path))
    opened.check_size(limit_pixels)
    found = tuple(one.metadata() for one in opened.parts or (opened,))
    if opened.info.frames > 1 and opened.info.format != "tiff":
        found = (replace(found[0], durations=(0,) * opened.info.frames, loop=opened.loop),)
    return opened.info, found


def read(path: str | Path, *, limit_pixels: int = LIMIT_PIXELS) -> Reading:
    """Open a picture.

    Args:
        path: path of the file.
        limit_pixels: largest number of pixels per frame; pictures whose header gives more are rejected before decoding.

    Returns:
        The open picture; a still is already decoded.

    Raises:
        PictureError: if the file is missing, a folder, empty, not a picture, damaged, truncated, too large, or of a
            kind that cannot be read without loss.
    """
    opened = _open(Path(path))
    opened.check_size(limit_pixels)
    return opened.decode()


@dataclass
class _Opened:
    """A file, or a page of one, whose header has been read."""

    path: Path
    info: Info
    image: Any = None  # lazy pyvips image of the first frame; pages after the first are opened on demand
    turn: int = 1
    animated: bool = False
    loop: int = 0
    kind: tiff.Page | None = None  # page of a TIFF
    chosen: tuple[int, ...] = (0,)  # pages of a TIFF that are read
    reduced: int = 0  # number of pages of a TIFF that are copies of others, or masks
    parts: tuple[_Opened, ...] = ()  # the pages, if they differ

    def check_size(self, limit_pixels: int) -> None:
        for info in self.info.pages or (self.info,):
            if info.width * info.height > limit_pixels:
                raise PictureError(
                    self.path,
                    f"its header promises {info.width} × {info.height} = {info.megapixels:.0f} megapixels, "
                    f"more than the limit of {limit_pixels / 1e6:.0f}",
                    "if you trust the file, raise the limit with limit_pixels (on the command line, "
                    "--limit-megapixels)",
                )

    def metadata(self) -> Metadata:
        """All metadata except frame durations."""
        if (others := _others(self.info.format)) is not None:
            return others.metadata(self.path)
        first = self.chosen[0] == 0
        return gather(self.path, self.info, self._lazy(), self.kind, first=first, reduced=self.reduced)

    def _lazy(self) -> Any:
        # A document of a thousand pages must not keep a thousand files open.
        return load_page(self.path, self.kind, self.chosen[0]) if self.image is None else self.image

    def decode(self) -> Reading:
        from .pillow import PillowFrames

        format_, info, metadata = self.info.format, self.info, self.metadata()
        if (others := _others(format_)) is not None:
            return Reading(self.path, info, metadata, _Still(others.pixels(self.path, info)), 1)
        if self.parts:
            pages = tuple(part.metadata() for part in self.parts)
            # Reopened for every access: a lazy image can be decoded only once, from top to bottom.
            parts = tuple(replace(part, image=None) for part in self.parts)
            return Reading(self.path, info, pages[0], _Pages(parts), 1, pages)
        if self.animated and format_ in ("png", "avif"):
            played = PillowFrames(self.path, format_, info.channels)
            metadata = replace(metadata, durations=played.durations, loop=played.loop)
            return Reading(self.path, info, metadata, played, 1)
        if info.frames > 1 and format_ == "tiff":
            pages_ = tuple(replace(self, image=None, chosen=(number,)) for number in self.chosen)
            return Reading(self.path, info, metadata, _Pages(pages_), 1)
        if format_ == "gif" and not is_whole(self.path):
            raise damaged(self.path, "it ends inside a frame")
        if info.frames > 1:
            whole = load(self.path, format_, n=-1)
            delays = tuple(int(delay) for delay in whole.get("delay"))[: info.frames]
            metadata = replace(metadata, durations=delays, loop=int(whole.get("loop")))
            return Reading(self.path, info, metadata, _Roll(self.path, format_, metadata, info), 1)
        pixels = self.pixels()
        if format_ == "gif" and pixels.shape[2] == 4 and pixels[..., 3].min() == 255:
            # Many GIF writers reserve a transparent colour that no pixel uses.
            pixels = np.ascontiguousarray(pixels[..., :3])
            info = replace(info, channels=3)
        return Reading(self.path, info, metadata, _Still(pixels), 1)

    def pixels(self) -> NDArray[Any]:
        """All pixels of a still, upright; rotated once, here, so that the original can be freed."""
        image = self._lazy()
        depth = avif_depth(image) if self.info.format == "avif" else 0
        return upright(decoded(self.path, converted(self.path, image, self.kind), depth), self.turn)


@dataclass
class _Still:
    """A picture that is already decoded."""

    pixels: NDArray[Any]

    def frame(self, index: int) -> NDArray[Any]:  # noqa: ARG002  signature of `Frames`
        return self.pixels


@dataclass
class _Pages:
    """Pages of a TIFF document, each decoded separately."""

    pages: tuple[_Opened, ...]

    def frame(self, index: int) -> NDArray[Any]:
        return self.pages[index].pixels()


@dataclass
class _Roll:
    """Frames of a GIF or WebP animation, which libvips stacks vertically and decodes downwards."""

    path: Path
    format: str
    metadata: Metadata
    info: Info
    roll: Any = None
    next: int = 0

    def frame(self, index: int) -> NDArray[Any]:
        wide, high = self.info.width, self.info.height
        if self.roll is None or index < self.next:  # decoding is sequential
            self.roll = converted(self.path, load(self.path, self.format, n=-1), None)
        self.next = index + 1
        return decoded(self.path, self.roll.crop(0, index * high, wide, high), 0)


class _Others(NamedTuple):
    """Functions that read a format without libvips."""

    info: Callable[[Path], Info]
    metadata: Callable[[Path], Metadata]
    pixels: Callable[[Path, Info], NDArray[Any]]


def _others(format_: str) -> _Others | None:
    """The functions for a format that libvips does not read; None if it does."""
    if format_ == "bmp":
        from .pillow import bmp_info, bmp_metadata, read_bmp

        return _Others(bmp_info, bmp_metadata, lambda path, info: read_bmp(path, info.channels))
    if format_ == "heic":
        from . import heic

        return _Others(heic.info, heic.metadata, heic.pixels)
    if format_ == "jxl":
        from . import jxl

        return _Others(jxl.info, jxl.metadata, jxl.pixels)
    if format_ == "dng":
        from . import dng

        return _Others(dng.info, dng.metadata, dng.pixels)
    return None


def _open(path: Path) -> _Opened:
    """Check the file and read its header."""
    format_, head = identify(path)
    if (others := _others(format_)) is not None:
        return _Opened(path, others.info(path))
    if format_ == "tiff":
        return _open_tiff(path)
    image = load(path, format_)
    frames, animated = _number(image, "n-pages", 1), False
    if format_ == "png":
        frames = _apng_frames(head)
        animated = frames > 1
    elif format_ == "avif":
        animated = head[8:12] == b"avis"
        frames = _avif_frames(path) if animated else 1
    channels, loop = channels_of(path, image, None), _number(image, "loop", 0)
    deep = image.format == "ushort"
    if animated and deep:
        raise PictureError(
            path,
            f"it is an animated {FORMATS[format_].label} of more than 8 bits, which foveal cannot read without loss",
            "save its frames as single pictures first",
        )
    if animated:
        from .pillow import animation_header

        channels, loop = animation_header(path, format_)
    # AVIF rotates its pixels with its own box, which libheif applies; EXIF in AVIF only repeats it.
    turn = 1 if format_ == "avif" else turn_of(image)
    wide, high = (image.height, image.width) if turn >= 5 else (image.width, image.height)
    return _Opened(
        path, Info(wide, high, channels, 16 if deep else 8, frames, format_), image, turn, animated, loop=loop
    )


def _open_tiff(path: Path) -> _Opened:
    """Open a TIFF: a picture, or a document whose pages are alike or differ."""
    kinds = tiff.pages(path)
    kind = kinds[0] if kinds else None
    first = load_page(path, kind, 0)
    count = _number(first, "n-pages", 1)
    # Reduced copies and masks are not pages; a file of nothing else is read as it is.
    chosen = tuple(i for i in range(count) if i >= len(kinds) or not kinds[i].reduced) or tuple(range(count))
    opened: list[_Opened] = []
    looks = set()
    for number in chosen:
        page_kind = kinds[number] if number < len(kinds) else kind
        image = load_page(path, page_kind, number) if number else first
        turn, channels = turn_of(image), channels_of(path, image, page_kind)
        wide, high = (image.height, image.width) if turn >= 5 else (image.width, image.height)
        info = Info(wide, high, channels, 16 if image.format in ("ushort", "short") else 8, 1, "tiff")
        looks.add((info, turn, image.interpretation, _look(page_kind), blob(image, "icc-profile-data")))
        kept = None if opened else image
        reduced = count - len(chosen)
        opened.append(_Opened(path, info, kept, turn, kind=page_kind, chosen=(number,), reduced=reduced))
    top = opened[0]
    if len(opened) == 1:
        return top
    if len(looks) == 1:
        return replace(top, info=replace(top.info, frames=len(opened)), chosen=chosen)
    pages = tuple(one.info for one in opened)
    return replace(top, info=replace(top.info, frames=len(pages), pages=pages), parts=tuple(opened))


def _look(kind: tiff.Page | None) -> tuple[object, ...]:
    return () if kind is None else (kind.photometric, kind.bits, kind.extra)


def _number(image: Any, name: str, default: int) -> int:
    return int(image.get(name)) if image.get_typeof(name) else default


def _apng_frames(head: bytes) -> int:
    """Number of frames that a PNG announces before its pixels."""
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
