"""What a film holds, and its frames as pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.errors import FovealError
from foveal.runtime.film.light import DARK, Light, light_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FilmError", "Header", "Shot", "described", "frames", "header", "opened", "pictures", "rgb", "spread"]

_UNSPECIFIED, _BT709, _BT601, _LIMITED, _FULL = 2, 1, 6, 1, 2  # ITU-T H.273, and FFmpeg's AVCOL_RANGE


class FilmError(FovealError, ValueError):
    """A film that cannot be read or written; the text names it, what is wrong and what to do."""


@dataclass(frozen=True)
class Header:
    """What a film's header says.

    Args:
        width: columns as stored, before rotation.
        height: rows as stored.
        frames: number of frames, estimated from the duration where the header does not say it.
        rate: mean frames per second.
        time_base: unit of timestamps, seconds.
        bits: bits of a sample.
        codec: name of the codec.
        primaries: colour primaries, as numbered by ITU-T H.273.
        transfer: transfer characteristics.
        matrix: matrix coefficients; where the film leaves them open, what players assume at its size.
        full: whether samples use their full range.
        rotation: degrees, counter-clockwise, that players turn the picture.
        aspect: width of a sample over its height.
        others: kind and codec of each other stream, in their order.
        notes: what will not be kept.
        light: HDR10's static metadata.
    """

    width: int
    height: int
    frames: int
    rate: Fraction
    time_base: Fraction
    bits: int
    codec: str
    primaries: int
    transfer: int
    matrix: int
    full: bool
    rotation: int
    aspect: Fraction
    others: tuple[str, ...]
    notes: tuple[str, ...]
    light: Light = DARK


@dataclass(frozen=True)
class Shot:
    """A frame with its place in time.

    Args:
        pts: timestamp in the film's time base.
        duration: duration in the same unit, 0 if unknown.
        frame: the frame, PyAV's.
    """

    pts: int
    duration: int
    frame: Any


def opened(path: Path) -> Any:
    """Open a film.

    Args:
        path: file.

    Returns:
        PyAV's container; close it.

    Raises:
        FilmError: no film, or one without pictures.
    """
    import av

    av.logging.set_level(av.logging.ERROR)
    try:
        container = av.open(str(path))
    except FileNotFoundError:
        raise FilmError(f"{path}: no such file") from None
    except (av.error.FFmpegError, OSError) as error:
        raise FilmError(f"{path}: it is no film that FFmpeg reads ({error.strerror}); convert it first") from None
    if not pictures(container):
        container.close()
        raise FilmError(f"{path}: it has no moving pictures; name a film")
    return container


def pictures(container: Any) -> Any:
    """The first stream of moving pictures; a cover is a still one.

    Args:
        container: PyAV's container.

    Returns:
        The stream, or None.
    """
    from av.stream import Disposition

    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def header(path: Path) -> Header:
    """Read a film's header and its first frame.

    Args:
        path: file.

    Returns:
        What it says.

    Raises:
        FilmError: no film, one without frames, or one in a form that cannot be made larger.
    """
    import av

    with opened(path) as container:
        video = pictures(container)
        try:
            frame = next(container.decode(video), None)
        except av.error.FFmpegError as error:
            raise FilmError(f"{path}: its pictures cannot be read ({error.strerror}); is the file whole?") from None
        if frame is None:
            raise FilmError(f"{path}: it has no frames; is the file whole?")
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        duration = video.duration * video.time_base if video.duration else (container.duration or 0) / 1e6
        notes = []
        if frame.interlaced_frame:
            notes.append("it is interlaced, and stays so; deinterlace it first for better pictures")
        kinds = {side.type.name for side in frame.side_data}
        if lost := sorted(kinds & {"DYNAMIC_HDR_PLUS", "DOVI_METADATA"}):
            notes.append(f"HDR metadata of its frames is not kept ({', '.join(lost).lower().replace('_', ' ')})")
        if frame.format.name.startswith(("yuva", "rgba", "argb", "bgra", "abgr", "gbrap")):
            notes.append("its transparency is not kept")
        matrix = int(frame.colorspace)
        if matrix == _UNSPECIFIED:
            matrix = _BT709 if frame.height >= 720 else _BT601
        return Header(
            width=frame.width,
            height=frame.height,
            frames=video.frames or max(1, round(float(duration * rate))),
            rate=Fraction(rate),
            time_base=video.time_base,
            bits=frame.format.components[0].bits,
            codec=video.codec_context.name,
            primaries=int(frame.color_primaries),
            transfer=int(frame.color_trc),
            matrix=matrix,
            full=int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj"),
            rotation=int(frame.rotation),
            aspect=Fraction(video.sample_aspect_ratio or 1),
            others=tuple(described(stream) for stream in container.streams if stream is not video),
            notes=tuple(notes),
            light=light_of(frame),
        )


def described(stream: Any) -> str:
    """A stream's kind and codec.

    Args:
        stream: PyAV's stream.

    Returns:
        Such as "audio (aac)".
    """
    context = getattr(stream, "codec_context", None)
    return f"{stream.type} ({context.name})" if context is not None else stream.type


def frames(path: Path, *, after: int | None = None) -> Iterator[Shot]:
    """Frames of a film in the order in which they are shown.

    Args:
        path: file.
        after: timestamp; frames up to and including it are passed over. None for all frames.

    Yields:
        Frames, timestamps strictly ascending.

    Raises:
        FilmError: a frame that cannot be decoded.
    """
    import av

    with opened(path) as container:
        video = pictures(container)
        step = round(1 / (video.average_rate or 25) / video.time_base)
        if after is not None:
            container.seek(after, stream=video, backward=True)
        last = None
        try:
            for frame in container.decode(video):
                pts = frame.pts if frame.pts is not None else (last + step if last is not None else 0)
                if last is not None and pts <= last:  # some cameras repeat timestamps
                    pts = last + 1
                last = pts
                if after is None or pts > after:
                    yield Shot(pts, frame.duration or step, frame)
        except av.error.FFmpegError as error:
            place = "" if last is None else f" after {float(last * video.time_base):.2f} s"
            raise FilmError(
                f"{path}: a frame{place} cannot be decoded ({error.strerror}); is the file whole?"
            ) from None


def spread(path: Path, film: Header, count: int) -> list[Shot]:
    """Frames spread evenly over a film.

    Args:
        path: file.
        film: its header.
        count: number of frames wanted.

    Returns:
        One to `count` frames, ascending; fewer where the film is shorter, or cannot be entered in the middle.

    Raises:
        FilmError: no frame can be decoded.
    """
    import av

    first = next(frames(path), None)
    if first is None:
        raise FilmError(f"{path}: it has no frames; is the file whole?")
    step = 1 / film.rate / film.time_base
    found = {}
    for place in range(count):
        at = first.pts + step * film.frames * (2 * place + 1) / (2 * count)
        try:
            shot = next(frames(path, after=round(at - step)), None)  # the frame that is shown at that time
        except (FilmError, av.error.FFmpegError):  # a damaged frame is named when its turn comes
            continue
        if shot is not None:
            found[shot.pts] = shot
    return [found[at] for at in sorted(found)] or [first]


def rgb(shot: Shot, film: Header) -> NDArray:
    """Pixels of a frame.

    Args:
        shot: the frame.
        film: its film.

    Returns:
        RGB, (H, W, 3), uint8 for 8-bit films, uint16 for others.
    """
    from av.video.reformatter import Interpolation

    wanted = "rgb24" if film.bits <= 8 else "rgb48le"
    made = shot.frame.reformat(
        format=wanted,
        src_colorspace=film.matrix,
        src_color_range=_FULL if film.full else _LIMITED,
        dst_color_range=_FULL,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
    )
    return np.ascontiguousarray(made.to_ndarray())
