"""A film made larger, or repaired at its own size: planned, made in segments that survive a stop, joined at the end.

    result = upscale_film(Upscaler(2), Path("clip.mp4"), Path("clip_x2.mp4"))

Memory holds a few frames and the packets of one segment. Segments are kept in a hidden folder beside the result until
it is whole; a second run with the same source and settings continues after the last whole segment.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from foveal.runtime.film.encode import CONTAINERS, Coding, Encoder, check, join, whole_segments
from foveal.runtime.film.source import FilmError, Header, Shot, frames, header, rgb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.runtime.film.restore import FilmRestorer
    from foveal.runtime.upscaler import Upscaler

__all__ = ["SEGMENT", "FilmPlan", "FilmResult", "is_film", "plan_film", "upscale_film", "usual", "work_folder"]

SEGMENT = 48  # frames of a segment
PROBED = 12  # frames that a plan is made from
ENCODING = 0.05  # seconds a megapixel of a frame's encoding, where nothing is measured


@dataclass(frozen=True)
class FilmPlan:
    """What a film will take.

    Args:
        width: columns of the result.
        height: rows of the result.
        frames: number of frames.
        megapixels: megapixels of all frames of the result.
        seconds: estimated seconds, encoding included, from the film's first frames.
        ready: frames that an earlier run made already.
        notes: what the user should know.
        copied: whether the file is copied, because nothing is to be done to its frames.
    """

    width: int
    height: int
    frames: int
    megapixels: float
    seconds: float
    ready: int
    notes: tuple[str, ...]
    copied: bool = False


@dataclass(frozen=True)
class FilmResult:
    """What was done to a film.

    Args:
        source: film that was read.
        target: film that was written.
        width: columns of the result.
        height: rows of the result.
        frames: number of frames.
        resumed: frames that an earlier run had made.
        seconds: seconds of this run.
        kept: kinds and codecs of the copied streams.
        notes: what was not kept.
    """

    source: Path
    target: Path
    width: int
    height: int
    frames: int
    resumed: int
    seconds: float
    kept: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data.

        Returns:
            Its fields.
        """
        return {**asdict(self), "source": str(self.source), "target": str(self.target)}


def is_film(path: Path) -> bool:
    """Whether a name is that of a film.

    Args:
        path: file.

    Returns:
        Whether its suffix is one of a film.
    """
    return path.suffix.lower() in CONTAINERS


def usual(target: Path) -> Coding:
    """The usual codec of a container.

    Args:
        target: file to write.

    Returns:
        VP9 for .webm, H.264 for the others.
    """
    return Coding("vp9" if target.suffix.lower() == ".webm" else "h264")


def work_folder(target: Path) -> Path:
    """Folder of the segments of a result that is not whole yet.

    Args:
        target: the result.

    Returns:
        A hidden folder beside it.
    """
    return target.with_name(f".{target.name}.segments")


def _check_budget(upscaler: Upscaler | FilmRestorer, source: Path) -> None:
    budget = getattr(upscaler, "budget", 1.0)
    if budget < 1:
        raise FilmError(
            f"{source}: a budget of {budget:g} would share each frame otherwise, which flickers; take an Upscaler "
            'without one, or of quality="fast"'
        )


def _settings(upscaler: Upscaler | FilmRestorer, source: Path, film: Header, coding: Coding) -> dict[str, Any]:
    """Everything that the segments depend on."""
    state = source.stat()
    found = {
        "source": [str(source.resolve()), state.st_size, state.st_mtime_ns],
        "bundle": upscaler.name,
        "scale": upscaler.scale,
        "coding": [coding.codec, coding.factor],
        "film": [film.width, film.height, str(film.time_base), film.matrix, film.full, film.bits, asdict(film.light)],
        "segment": SEGMENT,
    }
    return json.loads(json.dumps(found))


def _ready(folder: Path, settings: dict[str, Any]) -> list[Path]:
    """Whole segments that fit the settings; without settings that fit, none."""
    try:
        fits = json.loads((folder / "settings.json").read_text()) == settings
    except (OSError, ValueError):
        fits = False
    return whole_segments(folder) if fits else []


def _made(upscaler: Upscaler | FilmRestorer, shot: Shot, film: Header) -> NDArray:
    """The frame that a frame becomes."""
    at = getattr(upscaler, "at", None)  # a restorer may have measured each frame before
    pixels = rgb(shot, film)
    return upscaler(pixels) if at is None else at(shot.pts, pixels)


def _pace(upscaler: Upscaler | FilmRestorer, source: Path, film: Header, coding: Coding, probed: int) -> float:
    """Seconds a frame, from the first frames of the film: enlarged and encoded, once the engine is open."""
    shots = list(islice(frames(source), probed))
    encoder = Encoder(coding.context(film, upscaler.scale, upscaler.threads), film)
    _made(upscaler, shots[0], film)
    begun = time.perf_counter()
    for shot in shots:
        encoder.add(_made(upscaler, shot, film), shot.pts, shot.duration)
    encoder.finish()
    return (time.perf_counter() - begun) / len(shots)


def plan_film(
    upscaler: Upscaler | FilmRestorer, source: Path, target: Path, coding: Coding | None = None, *, probed: int = PROBED
) -> FilmPlan:
    """Size, frames and seconds of a result.

    Args:
        upscaler: what makes a frame from each.
        source: film to read.
        target: file to write.
        coding: codec and quality.
        probed: number of frames to measure; 0 to estimate from the engine's throughput, without enlarging anything.

    Returns:
        The plan.

    Raises:
        FilmError: no film.
    """
    _check_budget(upscaler, source)
    film, coding = header(source), coding or usual(target)
    one = upscaler.plan((film.width, film.height))
    ready = SEGMENT * len(_ready(work_folder(target), _settings(upscaler, source, film, coding)))
    left = max(0, film.frames - ready)
    if left and probed:
        pace = _pace(upscaler, source, film, coding, probed)
    else:
        pace = one.seconds - one.start + ENCODING * one.megapixels
    return FilmPlan(
        film.width * upscaler.scale,
        film.height * upscaler.scale,
        film.frames,
        film.frames * one.megapixels,
        one.start + left * pace,
        min(ready, film.frames),
        (*one.notes, *film.notes, *coding.lost(film)),
    )


def upscale_film(
    upscaler: Upscaler | FilmRestorer,
    source: Path,
    target: Path,
    *,
    coding: Coding | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FilmResult:
    """Make a film larger.

    Sound, subtitles, chapters, metadata, timestamps, rotation and colour tags are kept. An exception or Ctrl-C keeps
    the whole segments for the next run and leaves no file under the target's name.

    Args:
        upscaler: what makes a frame from each.
        source: film to read.
        target: film to write; its suffix says the container.
        coding: codec and quality; by default H.264 at rate factor 18, VP9 for .webm.
        overwrite: replace a target that exists.
        progress: function called after every frame with frames done and in all.

    Returns:
        What was done.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        FilmError: no film, a frame that cannot be decoded, or a container that does not take the codec.
    """
    begun = time.perf_counter()
    coding = coding or usual(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists already; --overwrite (overwrite=True) replaces it")
    _check_budget(upscaler, source)
    check(target, coding)
    film = header(source)
    settings, folder = _settings(upscaler, source, film, coding), work_folder(target)
    ready = _ready(folder, settings)
    if not ready:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps(settings))
    last = max((line[0] for line in json.loads(ready[-1].read_text())), default=None) if ready else None
    done = resumed = sum(len(json.loads(path.read_text())) for path in ready)
    number, encoder, held = len(ready), None, 0
    for shot in frames(source, after=last):
        if encoder is None:
            encoder = Encoder(coding.context(film, upscaler.scale, upscaler.threads), film)
        encoder.add(_made(upscaler, shot, film), shot.pts, shot.duration)
        done, held = done + 1, held + 1
        if held == SEGMENT:
            encoder.write(folder, number)
            number, encoder, held = number + 1, None, 0
        if progress is not None:
            progress(done, max(film.frames, done))
    if encoder is not None:
        encoder.write(folder, number)
    if not done:
        raise FilmError(f"{source}: it has no frames; is the file whole?")
    notes = join(source, target, film, whole_segments(folder), coding, upscaler.scale)
    shutil.rmtree(folder)
    lost = {note.partition(" is not kept")[0] for note in notes}
    return FilmResult(
        source,
        target,
        film.width * upscaler.scale,
        film.height * upscaler.scale,
        done,
        resumed,
        time.perf_counter() - begun,
        tuple(one for one in film.others if one not in lost),
        (*film.notes, *coding.lost(film), *notes),
    )
