"""What the server does with a film: check it, plan it, enlarge or repair it, show a frame of it before and after.

The width and height of a film are those that a player shows, after its rotation.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal import images
from foveal._install import install_hint
from foveal.runtime.film.encode import CONTAINERS, check
from foveal.runtime.film.film import plan_film, upscale_film, usual, work_folder
from foveal.runtime.film.restore import FilmRestorer, plan_restored, restore_film
from foveal.runtime.film.source import FilmError, frames, header, rgb
from foveal.runtime.restorer import Restorer
from foveal.serve.limits import Limits, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.runtime.upscaler import Upscaler

__all__ = ["checked_film", "do_film", "film_suffix", "forget_film", "plan_of_film", "poster", "suffixes"]

# Signatures of the containers, (offset, bytes), and the suffix of each: nothing else is given to FFmpeg.
_SIGNS = ((4, b"ftyp", ".mp4"), (4, b"moov", ".mov"), (0, b"\x1a\x45\xdf\xa3", ".mkv"), (8, b"AVI ", ".avi"))


def suffixes() -> tuple[str, ...]:
    """Suffixes of the films that this server takes.

    Returns:
        The suffixes; none without PyAV.
    """
    return tuple(CONTAINERS) if find_spec("av") is not None else ()


def film_suffix(head: bytes, name: str) -> str:
    """Recognise a film by its first bytes.

    Args:
        head: the first 32 bytes or more, not those of a picture.
        name: the client's name of the file.

    Returns:
        Its suffix, the client's if it is that of a film; "" for what is no film.
    """
    found = next((suffix for at, sign, suffix in _SIGNS if head[at : at + len(sign)] == sign), "")
    theirs = f".{name.rpartition('.')[2].lower()}"
    return next((suffix for suffix in CONTAINERS if suffix == theirs), found) if found else ""


def checked_film(path: Path, name: str, suffix: str, limits: Limits) -> images.Info:
    """Look at an uploaded film's header and first frame.

    Args:
        path: the file.
        name: the client's name of it, for errors.
        suffix: its suffix, from `film_suffix`.
        limits: limits.

    Returns:
        Size as shown, bits and number of frames; the format is the suffix without its dot.

    Raises:
        RefusedError: PyAV is not installed (415), a damaged film (422), or one that is too large (413).
    """
    if not suffixes():
        raise RefusedError(
            415, f"{name}: it is a film, and reading films needs av, which is not installed; {install_hint('video')}"
        )
    try:
        film = header(path)
    except FilmError as error:
        raise RefusedError(422, str(error).replace(str(path), name)) from None
    wide, high = (film.height, film.width) if film.rotation % 180 else (film.width, film.height)
    info = images.Info(wide, high, 3, 8 if film.bits <= 8 else 16, film.frames, suffix[1:])
    if info.megapixels > limits.megapixels:
        raise RefusedError(
            413,
            f"{name} has frames of {info.megapixels:.1f} megapixels, the limit is {limits.megapixels:g} "
            "(--max-megapixels); send a smaller film, or use `foveal upscale`",
        )
    if info.total_pixels > limits.film_megapixels * 1e6:
        raise RefusedError(
            413,
            f"{name} has {info.frames} frames of {wide}×{high}, {info.total_pixels / 1e6:.0f} megapixels together, "
            f"the limit is {limits.film_megapixels:g} (--max-film-megapixels); send a shorter one",
        )
    return info


def plan_of_film(upscaler: Upscaler | Restorer, source: Path, info: images.Info) -> dict[str, Any]:
    """Size and seconds of a result, and what will not be kept; of a repair, what was found.

    Args:
        upscaler: what enlarges, or repairs.
        source: the film.
        info: its size and frames.

    Returns:
        Plain data, as of a picture's plan.
    """
    target = source.with_name(f"plan{source.suffix}")
    if isinstance(upscaler, Restorer):
        plan = plan_restored(FilmRestorer(upscaler, source), source, target, probed=0)
    else:
        plan = plan_film(upscaler, source, target, probed=0)
    return {
        "width": info.width * upscaler.scale,
        "height": info.height * upscaler.scale,
        "frames": plan.frames,
        "megapixels": plan.megapixels,
        "seconds": plan.seconds,
        "engine": upscaler.engine(),
        "format": info.format,
        "notes": list(plan.notes),
    }


def do_film(
    upscaler: Upscaler | Restorer, source: Path, target: Path, tell: Callable[[float, float], None]
) -> dict[str, Any]:
    """Make a film larger, or repair it.

    Args:
        upscaler: what enlarges, or repairs.
        source: the film.
        target: film to write.
        tell: function called with frames done and in all; it may raise to stop the work.

    Returns:
        Plain data, as of a picture's result.
    """
    check(target, usual(target))
    if isinstance(upscaler, Restorer):
        result = restore_film(upscaler, source, target, overwrite=True, progress=tell)
    else:
        result = upscale_film(upscaler, source, target, overwrite=True, progress=tell)
    wide, high = result.width, result.height
    if header(source).rotation % 180:
        wide, high = high, wide
    return {
        "width": wide,
        "height": high,
        "frames": result.frames,
        "megapixels": wide * high * result.frames / 1e6,
        "seconds": result.seconds,
        "bundle": upscaler.name,
        "engine": upscaler.engine(),
        "threads": upscaler.threads,
        "kept": list(result.kept),
        "notes": list(result.notes),
    }


def poster(path: Path) -> NDArray[np.uint8]:
    """The frame in the middle of a film, as it is shown.

    Args:
        path: the film.

    Returns:
        RGB, (H, W, 3).
    """
    film = header(path)
    half = 1 / (2 * film.rate)  # a source and its result must show the same frame, although containers round times
    after = round((film.frames // 2 / film.rate - half) / film.time_base)
    shot = next(frames(path, after=after), None) or next(frames(path))
    pixels = rgb(shot, film)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(np.rot90(pixels, film.rotation // 90))


def forget_film(target: Path) -> None:
    """Delete what a stopped job left of a film.

    Args:
        target: the film that it would have written.
    """
    shutil.rmtree(work_folder(target), ignore_errors=True)
