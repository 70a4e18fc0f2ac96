"""Segments of an enlarged film: some frames each, encoded on their own, joined without another encoding.

A segment is two files: `00003.bin`, the packets one after the other, and `00003.json`, a line of pts, dts, duration,
keyframe and size for each. The second is written last, so a segment with one is whole.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from foveal.runtime.film.source import FilmError, Header, described, opened, pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["CODECS", "CONTAINERS", "Coding", "Encoder", "Packets", "check", "join", "whole_segments"]

# Name → FFmpeg's encoder, its options, pixel formats for 8 and for more bits.
CODECS = {
    "h264": ("libx264", {"preset": "medium"}, ("yuv420p", "yuv420p10le")),
    "hevc": ("libx265", {"preset": "medium", "x265-params": "log-level=error"}, ("yuv420p", "yuv420p10le")),
    "av1": ("libsvtav1", {"preset": "8"}, ("yuv420p", "yuv420p10le")),
    "vp9": ("libvpx-vp9", {"row-mt": "1", "cpu-used": "4", "b": "0"}, ("yuv420p", "yuv420p10le")),
    "ffv1": ("ffv1", {}, ("yuv444p", "yuv444p10le")),
}
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
_LIMITED, _FULL = 1, 2


@dataclass(frozen=True)
class Coding:
    """How the pictures are encoded.

    Args:
        codec: "h264", "hevc", "av1", "vp9" or "ffv1" (lossless).
        crf: constant rate factor, 0 to 63; lower is better and larger. None takes the codec's usual one.

    Raises:
        FilmError: an unknown codec, or a rate factor outside the codec's range.
    """

    codec: str = "h264"
    crf: int | None = None

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise FilmError(f"codec must be one of {', '.join(CODECS)}, got {self.codec!r}")
        most = 51 if self.codec in ("h264", "hevc") else 63
        if self.crf is not None and not 0 <= self.crf <= most:
            raise FilmError(f"crf must be in 0 to {most} for {self.codec}, got {self.crf}")

    @property
    def factor(self) -> int:
        """The rate factor."""
        return (
            self.crf if self.crf is not None else {"h264": 18, "hevc": 20, "av1": 28, "vp9": 28, "ffv1": 0}[self.codec]
        )

    def context(self, film: Header, scale: int, threads: int) -> Any:
        """An encoder, not yet open.

        Args:
            film: the source.
            scale: output side over input side.
            threads: processor threads.

        Returns:
            PyAV's codec context.

        Raises:
            FilmError: FFmpeg here has no such encoder.
        """
        import av

        name = CODECS[self.codec][0]
        if name not in av.codecs_available:
            raise FilmError(f"this FFmpeg cannot encode {self.codec}; choose another --codec")
        return self.configure(av.CodecContext.create(name, "w"), film, scale, threads)

    def configure(self, context: Any, film: Header, scale: int, threads: int) -> Any:
        """Set an encoder up.

        Args:
            context: PyAV's codec context.
            film: the source.
            scale: output side over input side.
            threads: processor threads.

        Returns:
            The same context.
        """
        from av.codec.context import Flags

        _, options, formats = CODECS[self.codec]
        context.width, context.height = film.width * scale, film.height * scale
        plain = formats[film.bits > 8]
        odd = (film.width * scale) % 2 or (film.height * scale) % 2
        context.pix_fmt = plain.replace("420", "444") if odd else plain
        context.time_base, context.framerate = film.time_base, film.rate
        context.sample_aspect_ratio = film.aspect
        context.color_range = _FULL if film.full else _LIMITED
        context.color_primaries, context.color_trc, context.colorspace = film.primaries, film.transfer, film.matrix
        context.flags |= Flags.global_header
        context.thread_count = threads
        words = dict(options)
        for name, text in film.light.options(self.codec).items():
            words[name] = f"{words[name]}:{text}" if name in words else text
        context.options = {**words, **({} if self.codec == "ffv1" else {"crf": str(self.factor)})}
        return context

    def lost(self, film: Header) -> tuple[str, ...]:
        """What the encoder does not write.

        Args:
            film: the source.

        Returns:
            At most one sentence for the user.
        """
        if not film.light or film.light.options(self.codec):
            return ()
        return (f"HDR10 metadata is not kept in {self.codec}; h264, hevc and av1 hold it",)


def check(target: Path, coding: Coding) -> None:
    """Refuse a codec that the container does not take, before any work.

    Args:
        target: file to write.
        coding: how the pictures will be encoded.

    Raises:
        FilmError: no container of this name, or one that does not take the codec.
    """
    import io

    import av

    container = CONTAINERS.get(target.suffix.lower())
    if container is None:
        raise FilmError(f"{target}: a film ends in one of {', '.join(CONTAINERS)}")
    made = av.open(io.BytesIO(), "w", format=container)
    try:
        made.add_stream(CODECS[coding.codec][0], rate=25)
    except ValueError:
        raise FilmError(
            f"{target}: a {target.suffix} file cannot hold {coding.codec}; end the name in .mkv, "
            "or choose another --codec"
        ) from None


class Encoder:
    """One segment in the making.

    Args:
        context: encoder, see `Coding.context`.
        film: the source.
    """

    def __init__(self, context: Any, film: Header) -> None:
        self.context, self.film = context, film
        self.packets: list[Any] = []

    def add(self, pixels: NDArray, pts: int, duration: int) -> None:
        """Encode a frame.

        Args:
            pixels: RGB, (H, W, 3), uint8 or uint16.
            pts: timestamp, in the film's time base.
            duration: duration, in the same unit.
        """
        import av
        from av.video.reformatter import Interpolation

        frame = av.VideoFrame.from_ndarray(pixels, "rgb24" if pixels.itemsize == 1 else "rgb48le")
        frame = frame.reformat(
            format=self.context.pix_fmt,
            src_color_range=_FULL,
            dst_colorspace=self.film.matrix,
            dst_color_range=_FULL if self.film.full else _LIMITED,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
        )
        frame.pts, frame.time_base, frame.duration = pts, self.film.time_base, duration
        self.packets += self.context.encode(frame)

    def finish(self) -> None:
        """Encode the frames that the encoder still holds."""
        self.packets += self.context.encode(None)

    def write(self, folder: Path, number: int) -> None:
        """End the segment and write it.

        Args:
            folder: folder of the segments.
            number: number of the segment.
        """
        self.finish()
        lines = [[p.pts, p.dts, p.duration or 0, bool(p.is_keyframe), p.size] for p in self.packets]
        (folder / f"{number:05}.bin").write_bytes(b"".join(bytes(p) for p in self.packets))
        part = folder / f"{number:05}.part"
        part.write_text(json.dumps(lines))
        part.replace(folder / f"{number:05}.json")


def whole_segments(folder: Path) -> list[Path]:
    """Index files of the whole segments from the first one on.

    Args:
        folder: folder of the segments.

    Returns:
        Paths, in order, up to the first that is missing.
    """
    found: list[Path] = []
    while (path := folder / f"{len(found):05}.json").is_file():
        found.append(path)
    return found


@dataclass(frozen=True)
class Packets:
    """The packets of all segments: what the index files say, and where the bytes are.

    Args:
        segments: index files, in order.
    """

    segments: Sequence[Path]

    def index(self) -> list[tuple[int, int, int, bool]]:
        """Timestamps of all packets.

        Returns:
            pts, dts, duration and keyframe, in the order of decoding. A packet's dts is a timestamp of the film, in
            ascending order, shifted so that none lies behind its pts.
        """
        lines = [line for path in self.segments for line in json.loads(path.read_text())]
        shown = sorted(line[0] for line in lines)
        late = max((at - line[0] for at, line in zip(shown, lines, strict=True)), default=0)
        return [(line[0], at - late, line[2], line[3]) for at, line in zip(shown, lines, strict=True)]

    def bytes(self) -> Iterator[bytes]:
        """Bytes of all packets, one segment in memory at a time.

        Yields:
            Bytes of a packet.
        """
        for path in self.segments:
            data, at = path.with_suffix(".bin").read_bytes(), 0
            for line in json.loads(path.read_text()):
                yield data[at : at + line[4]]
                at += line[4]


def join(source: Path, target: Path, film: Header, segments: Sequence[Path], coding: Coding, scale: int) -> list[str]:
    """Write the film: encoded pictures from the segments, all other streams copied from the source.

    Args:
        source: the source.
        target: file to write; it appears only when it is whole.
        film: the source's header.
        segments: index files of all segments.
        coding: how the pictures were encoded.
        scale: output side over input side.

    Returns:
        Sentences on what could not be kept.

    """
    import av

    part = target.with_name(f".{target.stem}.part{target.suffix}")
    notes: list[str] = []
    try:
        with opened(source) as given, av.open(str(part), "w") as made:
            made.metadata.update(
                {
                    k: v
                    for k, v in given.metadata.items()
                    if k not in ("major_brand", "minor_version", "compatible_brands", "encoder")
                }
            )
            if chapters := given.chapters():
                made.set_chapters(chapters)
            video: Any = made.add_stream(CODECS[coding.codec][0], rate=film.rate)
            coding.configure(video.codec_context, film, scale, 1)
            video.time_base = film.time_base
            if film.rotation:
                video.set_display_rotation(film.rotation)
            copies = _copies(given, made, notes)
            made.start_encoding()
            streams = [_pictures(Packets(segments), video, film), _copied(given, copies)]
            for _, _, packet in heapq.merge(*streams, key=lambda item: item[:2]):
                made.mux(packet)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return notes


def _copies(given: Any, made: Any, notes: list[str]) -> dict[int, Any]:
    """Streams of the result for the other streams of the source, by the source's index."""
    main, copies = pictures(given), {}
    for stream in given.streams:
        if stream is main:
            continue
        what = described(stream)
        if stream.type == "attachment":
            made.add_attachment(stream.name or "attachment", stream.mimetype or "application/octet-stream", stream.data)
            continue
        if stream.codec_context is None or stream.codec_context.name not in made.supported_codecs:
            notes.append(f"{what} is not kept: the container does not take it; .mkv takes most")
            continue
        try:
            copy = made.add_stream_from_template(stream)
        except Exception as error:  # each library fails in its own way
            notes.append(f"{what} is not kept ({error})")
            continue
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        copies[stream.index] = copy
    return copies


def _pictures(packets: Packets, video: Any, film: Header) -> Iterator[tuple[Fraction, int, Any]]:
    import av

    for (pts, dts, duration, key), data in zip(packets.index(), packets.bytes(), strict=True):
        packet = av.Packet(data)
        packet.pts, packet.dts, packet.time_base = pts, dts, film.time_base
        packet.duration, packet.is_keyframe, packet.stream = duration, key, video
        yield dts * film.time_base, 0, packet


def _copied(given: Any, copies: dict[int, Any]) -> Iterator[tuple[Fraction, int, Any]]:
    if not copies:
        return
    last: dict[int, Fraction] = {}
    for packet in given.demux([stream for stream in given.streams if stream.index in copies]):
        if packet.dts is None and packet.pts is None:  # the end's empty packet
            continue
        if packet.dts is None:
            packet.dts = packet.pts
        at = max(packet.dts * packet.time_base, last.get(-1, Fraction(-(10**9))))
        last[-1] = at  # merging needs ascending times, across the streams
        packet.stream = copies[packet.stream.index]
        yield at, 1, packet
