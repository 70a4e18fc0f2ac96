"""Write pictures row by row, with their metadata, and never leave half a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import avif, exif, png_chunks, tiff, xmp
from ._vips import reason, set_blob, vips
from .encode import saver
from .errors import PictureError
from .fit import not_kept, refuse_unfit
from .formats import format_for
from .metadata import Metadata
from .stored import Stored
from .temporary import Temporary

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from .picture import Picture
    from .stream import Sink

__all__ = ["Writer", "write"]

BLOCK_BYTES = 1 << 20


class Writer:
    """Writes one file from top to bottom; a context manager.

    Rows are streamed to disk: for PNG, JPEG, TIFF and BMP memory does not grow with the height. WebP and AVIF encoders
    hold a frame in memory, animated PNG and AVIF the whole animation.

    The file gets its name when the block ends without an exception; until then it has a temporary name in the same
    folder, and after an exception nothing is left.

    Values are converted to what the format can store: 16 bits are rounded to 8; colours become sRGB if a profile cannot
    be attached (GIF and BMP; grey profiles in WebP and AVIF, which store grey as colour). A visible loss is an error
    instead: transparency in JPEG without `background`, frames in a still format.

    Args:
        path: file to write; its suffix selects the format.
        width: number of columns.
        height: number of rows of one frame.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        metadata: metadata to write, usually that of the picture that was read.
        quality: quality for JPEG, WebP and AVIF, 1 to 100, where 100 is lossless in WebP and AVIF; None means 95 for
            JPEG, 90 for AVIF, and for WebP lossless if the picture came from a lossless file and 95 otherwise.
        frames: number of pictures in the file, written one after the other.
        overwrite: whether to replace an existing file.
        background: background for transparent pixels in formats without alpha: grey level or colour, 0 to 255.

    Raises:
        PictureError: if the format cannot store this picture, the file exists, or the folder does not.
        ValueError: if a size, the number of channels or the quality is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        channels: int,
        metadata: Metadata | None = None,
        *,
        quality: int | None = None,
        frames: int = 1,
        overwrite: bool = False,
        background: int | tuple[int, int, int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.width, self.height, self.channels, self.frames = width, height, channels, frames
        if min(width, height, frames) < 1 or not 1 <= channels <= 4:
            raise ValueError(
                "width, height and frames must be at least 1 and channels 1 to 4, "
                f"got {width} × {height}, {frames} frames, {channels} channels"
            )
        if quality is not None and not 1 <= quality <= 100:
            raise ValueError(f"quality must be in 1…100, got {quality}; leave it out for the best default")
        self.format = format_for(path)
        self.metadata = replace(metadata or Metadata())
        self._overwrite = overwrite
        self._quality = quality
        self._rows = 0
        self._check(background=background is not None)
        self._stored = Stored(self.format, channels, self.metadata, frames=frames, background=background)
        self.raw_bytes = width * height * frames * self._stored.channels * (2 if self._stored.deep else 1)
        self._unfinished = Temporary(self.path)
        self._temporary = self._unfinished.path
        self._sink: Sink | None = None

    def __enter__(self) -> Writer:
        try:
            self._unfinished.begin(self._temporary)
            self._sink = self._open()
        except OSError as error:
            self._discard()
            raise self._failed(error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def rows(self, block: NDArray[Any]) -> None:
        """Append rows, frame after frame for animations.

        Args:
            block: rows, (n, W, C), or (n, W) for one channel; uint8 or uint16. 8-bit values are expanded for a 16-bit
                file and 16-bit values rounded for an 8-bit one.

        Raises:
            ValueError: if the width, number of channels or dtype of the rows is wrong, or there are too many.
            PictureError: if writing fails, for example because the disk is full.
        """
        if self._sink is None:
            raise ValueError("rows must be called inside the Writer's with block")
        if block.ndim == 2 and self.channels == 1:
            block = block[..., None]
        if block.ndim != 3 or block.shape[1:] != (self.width, self.channels):
            raise ValueError(f"rows must be (n, {self.width}, {self.channels}), got shape {block.shape}")
        if block.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"rows must be uint8 or uint16, got {block.dtype}; scale and round first")
        if self._rows + len(block) > self.height * self.frames:
            raise ValueError(
                f"the picture has {self.height * self.frames} rows, got {self._rows + len(block)}; "
                "give the Writer the height of one frame and the number of frames"
            )
        step = max(1, BLOCK_BYTES // (self.width * self.channels * block.itemsize))
        try:
            for start in range(0, len(block), step):
                self._sink.rows(self._stored.rows(block[start : start + step]))
        except (OSError, vips().Error) as error:
            raise self._failed(error) from error
        self._rows += len(block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sink is None:
            return
        try:
            if kind is None:
                self.finish()
                self.put_in_place()
        finally:
            self.give_up()

    @property
    def complete(self) -> bool:
        """Whether all rows have been written."""
        return self._rows == self.height * self.frames

    @property
    def temporary(self) -> Path:
        """Path of the file until it gets its name."""
        return self._temporary

    def finish(self) -> None:
        """Complete the file under its temporary name; called on leaving the with block.

        Raises:
            ValueError: if rows are missing.
            PictureError: if the file cannot be written.
        """
        if not self.complete:
            raise ValueError(
                f"the picture has {self.height * self.frames} rows, got only {self._rows}; write the rest too"
            )
        sink, self._sink = self._sink, None
        try:
            if sink is not None:
                sink.finish()
            self._say_the_rest()
        except (OSError, vips().Error) as error:
            raise self._failed(error) from error
        finally:
            if sink is not None:
                sink.abort()

    def put_in_place(self) -> None:
        """Rename the finished file to its target; called on leaving the with block.

        Raises:
            PictureError: if the target exists by now, or renaming fails.
        """
        self._refuse_existing()
        try:
            self._temporary.replace(self.path)
        except OSError as error:
            raise self._failed(error) from error

    def give_up(self) -> None:
        """Stop the encoder and remove the temporary file."""
        sink, self._sink = self._sink, None
        try:
            if sink is not None:
                sink.abort()
        finally:
            self._discard()

    def _say_the_rest(self) -> None:
        """Add what the encoders do not write to the complete file."""
        name, path = self.format.name, self._temporary
        if name == "tiff":
            if self.metadata.exif:
                exif.into_tiff(path, self._exif())
            if self.metadata.spare:
                tiff.set_spare(path)
        elif name == "png":
            words = png_chunks.texts(self.metadata.chunks, self.metadata.comments)
            png_chunks.insert(path, self._stored.meaning.chunks, words)
        elif name == "avif" and self._stored.meaning.code is not None:
            avif.set_colours(path, self._stored.meaning.code)

    def _discard(self) -> None:
        self._unfinished.end(self._temporary)

    def _failed(self, error: Exception) -> PictureError:
        why = reason(error) if not isinstance(error, OSError) else str(error.strerror or error)
        return PictureError(self.path, f"it cannot be written ({why})", "check the space and rights on that disk")

    def _refuse_existing(self) -> None:
        if self.path.is_dir():
            raise PictureError(self.path, "a folder has this name", "choose another name")
        if self.path.exists() and not self._overwrite:
            raise PictureError(self.path, "the file exists already", "choose another name, or allow overwriting "
                               "(overwrite=True, on the command line --overwrite)")  # fmt: skip

    def _check(self, *, background: bool) -> None:
        """All checks that can be made before the first row."""
        form = self.format
        self._refuse_existing()
        if not self.path.parent.is_dir():
            raise PictureError(self.path, f"there is no folder {self.path.parent}", "create it first")
        refuse_unfit(
            self.path,
            form,
            self.width,
            self.height,
            self.channels,
            self.metadata,
            frames=self.frames,
            background=background,
        )
        durations = len(self.metadata.durations)
        if self.frames > 1 and form.name != "tiff" and durations != self.frames:
            raise ValueError(f"metadata must have one duration per frame, got {durations} for {self.frames} frames")

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the source has and this file does not keep, as a sentence for the user; empty if all is kept."""
        return not_kept(self.format, self.channels, self.metadata, frames=self.frames)

    def _exif(self) -> bytes:
        return exif.resized(self.metadata.exif or b"", self.width, self.height)

    def _open(self) -> Sink:
        if self.format.name == "bmp":
            from .bmp import BmpSink

            dpi = self.metadata.dpi or (72.0, 72.0)
            try:
                return BmpSink(self._temporary, self.width, self.height, self._stored.channels, dpi)
            except OSError as error:
                raise self._failed(error) from error
        if self.frames > 1 and self.format.name in ("png", "avif"):
            from .animation import AnimationSink

            packet = self.metadata.xmp
            metadata = replace(
                self.metadata,
                icc=self._stored.icc,
                exif=self._exif() if self.metadata.exif else None,
                xmp=xmp.resized(packet, self.width, self.height) if packet else None,
            )
            return AnimationSink(self._temporary, self.format.name, self.frames, self.height, metadata, self._quality)
        from .stream import VipsSink

        return VipsSink(self.width, self.height * self.frames, self._stored.channels, self._stored.deep, self._save)

    def _save(self, image: Any) -> None:
        """Attach the metadata and encode; runs in the encoder's thread."""
        across, down = self.metadata.dpi or (72.0, 72.0)
        image = image.copy(xres=across / 25.4, yres=down / 25.4)
        packet = self.metadata.xmp
        set_blob(image, "icc-profile-data", self._stored.icc)
        set_blob(image, "xmp-data", xmp.resized(packet, self.width, self.height) if packet else None)
        set_blob(image, "iptc-data", self.metadata.iptc if self.format.name == "jpeg" else None)
        if self.metadata.exif:
            set_blob(image, "exif-data", b"Exif\0\0" + self._exif())
        if self.frames > 1:
            image.set_type(vips().GValue.gint_type, "page-height", self.height)
            if self.metadata.durations:
                image.set_type(vips().GValue.array_int_type, "delay", list(self.metadata.durations))
                image.set_type(vips().GValue.gint_type, "loop", self.metadata.loop)
        name, options = saver(
            self.format.name,
            self.metadata,
            quality=self._quality,
            raw_bytes=self.raw_bytes,
            depth=self._stored.depth,
        )
        getattr(image, name)(self._unfinished.place(self._temporary), **options)


def write(
    path: str | Path,
    picture: Picture,
    *,
    quality: int | None = None,
    overwrite: bool = False,
    background: int | tuple[int, int, int] | None = None,
) -> None:
    """Write a picture from memory.

    Args:
        path: file to write; its suffix selects the format.
        picture: pixels and metadata.
        quality: quality, see `Writer`.
        overwrite: whether to replace an existing file.
        background: background for transparent pixels, see `Writer`.

    Raises:
        PictureError: if the format cannot store this picture, the file exists, or it cannot be written.
    """
    bits = 16 if picture.pixels.dtype == np.uint16 else 8
    metadata = replace(picture.metadata, bits=bits, durations=())
    with Writer(
        path,
        picture.width,
        picture.height,
        picture.channels,
        metadata,
        quality=quality,
        overwrite=overwrite,
        background=background,
    ) as writer:
        writer.rows(picture.pixels)
