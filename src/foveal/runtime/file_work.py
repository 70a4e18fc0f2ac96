"""One file in, one file out: read, made band by band, written behind, with everything else that the file holds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.runtime.background_writer import BackgroundWriter
from foveal.runtime.cleaning import file_level
from foveal.runtime.enlarge import Progress, Step, counter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.images import Picture

__all__ = ["Begun", "FileWork", "work_on_file"]


@dataclass(frozen=True)
class Begun:
    """What is known when a file's first frame was read.

    Args:
        frame: the first frame.
        still: whether it is a still picture, at which one may look; frames of an animation must be treated alike.
        stated: level that a JPEG file states; None for another file.
        steps: function from the number of networks that each pixel passes to the function called after each batch of
            tiles.
    """

    frame: Picture
    still: bool
    stated: float | None
    steps: Callable[[int], Step | None]


@dataclass(frozen=True)
class FileWork:
    """What became of a file.

    Args:
        width: width of the result, in pixels.
        height: height of the result.
        frames: number of frames.
        megapixels: megapixels of the result, all frames.
        seconds: seconds that it took.
        left_out: sentences on what the format cannot hold.
    """

    width: int
    height: int
    frames: int
    megapixels: float
    seconds: float
    left_out: tuple[str, ...]


def work_on_file(
    source: Path,
    target: Path,
    scale: int,
    begin: Callable[[Begun], Callable[[Picture], Iterator[NDArray]]],
    *,
    page: int | None = None,
    overwrite: bool = False,
    limit_pixels: int | None = None,
    background: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
) -> FileWork:
    """Make a picture file from another.

    Args:
        source: picture or animation to read.
        target: file to write; its suffix says the format.
        scale: s, output side over input side.
        begin: function from what is known at the first frame to a function from each frame to its bands, (s·n, s·W, C).
        page: page of a TIFF document, from 0, that becomes a picture of its own; None for all of them in one file.
        overwrite: replace a target that exists.
        limit_pixels: refuse larger pictures; by default what `foveal.images.read` allows.
        background: colour to put below transparent pixels where the format has no transparency.
        progress: function called after every batch of tiles.

    Returns:
        What became of it.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
    """
    from foveal import images

    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists already; say --overwrite (overwrite=True) to replace it")
    start = time.perf_counter()
    reading = images.read(source, limit_pixels=images.LIMIT_PIXELS if limit_pixels is None else limit_pixels)
    if page is not None:
        reading = reading.page(page)
    frames = reading.frames
    pixels = reading.info.total_pixels * scale**2
    picture = reading.frame(0)
    still = frames == 1 and reading.info.format != "gif"
    stated = file_level(source) if still else None
    make = begin(Begun(picture, still, stated, lambda passes: counter(progress, pixels, passes=passes)))
    writing = images.writer_for(reading, target, scale, overwrite=overwrite, background=background)
    with writing as writer, BackgroundWriter(writer) as behind:
        for index in range(frames):
            if index:
                picture = reading.frame(index)
            for band in make(picture):
                behind.rows(band)
    return FileWork(
        reading.width * scale,
        reading.height * scale,
        frames,
        pixels / 1e6,
        time.perf_counter() - start,
        tuple(writing.left_out),
    )
