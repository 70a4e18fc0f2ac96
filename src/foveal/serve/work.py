"""What the server does with a picture: plan it, try a crop of it, enlarge it, show it before and after."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foveal import images
from foveal.images.formats import FORMATS, result_format, sniff
from foveal.images.needs import readable
from foveal.runtime.cleaning import checked_clean
from foveal.runtime.film.film import is_film
from foveal.runtime.upscaler import Upscaler
from foveal.serve.film import checked_film, do_film, film_suffix, plan_of_film, poster
from foveal.serve.limits import Limits, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["PREVIEW_SIDE", "QUALITIES", "SCALES", "StoppedError", "Studio", "Wish", "checked", "preview"]

SCALES, QUALITIES = (2, 3, 4), ("fast", "balanced")
OPEN = 8  # upscalers kept open
PREVIEW_SIDE = 1600  # longest side of a preview, in pixels
PREVIEW_MEGAPIXELS = 100  # largest picture that is decoded whole for a preview


class StoppedError(Exception):
    """Raised inside a job that was cancelled or took too long; the text says which."""


@dataclass(frozen=True)
class Wish:
    """What a client wants done with a picture.

    Args:
        scale: output side over input side.
        quality: "fast" or "balanced".
        format: format of the result; "" for that of the source.
        clean: "auto", "off", or a strength of 0 to 100.
        crop: left, top, width and height of a part, in pixels of the source; None for all of it.

    Raises:
        RefusedError: a value that cannot be (422).
    """

    scale: int = 4
    quality: str = "balanced"
    format: str = ""
    clean: str = "auto"
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise RefusedError(422, f"scale must be one of {', '.join(map(str, SCALES))}, got {self.scale}")
        if self.quality not in QUALITIES:
            raise RefusedError(422, f"quality must be one of {', '.join(QUALITIES)}, got {self.quality!r}")
        if self.format and self.format not in FORMATS:
            raise RefusedError(422, f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        try:
            checked_clean(self.clean)
        except ValueError as error:
            raise RefusedError(422, str(error)) from None


def checked(path: Path, name: str, limits: Limits) -> images.Info:
    """Look at the header of an uploaded picture or film.

    Args:
        path: the file.
        name: the client's name of it, for errors.
        limits: limits.

    Returns:
        What the header says; the format of a film is its suffix without the dot.

    Raises:
        RefusedError: no picture that foveal reads (415), a damaged one (422), or one that is too large (413).
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if sniff(head) is None and (suffix := film_suffix(head, name)):
        return checked_film(path, name, suffix, limits)
    megapixels = limits.megapixels
    try:
        info = images.probe(path)
    except images.PictureError as error:
        known = sniff(head)
        status = 415 if known is None or known not in readable() else 422
        raise RefusedError(status, f"{name}: {error.wrong}; {error.advice}") from None
    if info.total_pixels > megapixels * 1e6:
        raise RefusedError(
            413,
            f"{name} has {info.total_pixels / 1e6:.1f} megapixels, the limit is {megapixels:g} (--max-megapixels); "
            "send a smaller picture, or use `foveal upscale`",
        )
    return info


class Studio:
    """Upscalers for all scales, qualities and ways to clean, one picture at a time.

    Args:
        threads: processor threads; None for all.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._made: dict[tuple[str, int, str, str], Upscaler] = {}
        self._lock = threading.Lock()

    def _upscaler(self, use: str, wish: Wish) -> Upscaler:
        """Upscalers are not for several threads, so plans and work have their own."""
        key = (use, wish.scale, wish.quality, wish.clean)
        with self._lock:
            made = self._made.pop(key, None)
            if made is None:
                try:
                    made = Upscaler(wish.scale, wish.quality, threads=self.threads, clean=wish.clean)
                except ValueError as error:  # a strength where there is no network that cleans
                    raise RefusedError(422, str(error)) from None
            while len(self._made) >= OPEN:  # the one unused for longest goes; a client cannot fill the memory
                del self._made[next(iter(self._made))]
            self._made[key] = made
            return made

    def plan(self, source: Path, info: images.Info, wish: Wish) -> dict[str, Any]:
        """Size and seconds of a result, and what will not be kept.

        Args:
            source: the picture.
            info: its header.
            wish: what to do.

        Returns:
            Plain data: width, height, megapixels, seconds, engine, notes.
        """
        if is_film(source) and wish.crop is None:
            upscaler = self._upscaler("plan", _for_film(wish))
            with self._lock:
                return plan_of_film(upscaler, source, info)
        made = wish.format or result_format(info.format)
        width, height = (wish.crop[2], wish.crop[3]) if wish.crop else (info.width, info.height)
        upscaler = self._upscaler("plan", wish)
        with self._lock:
            plan = upscaler.plan(source if wish.crop is None else (width, height), file_format=made)
        notes = list(plan.notes)
        if wish.crop is None:
            target = source.with_name(f"plan{FORMATS[made].suffixes[0]}")
            notes += images.foresee(source, target, wish.scale, limit_pixels=info.width * info.height)
        return {
            "width": width * wish.scale,
            "height": height * wish.scale,
            "frames": 1 if wish.crop else info.frames,
            "megapixels": plan.megapixels,
            "seconds": plan.seconds,
            "engine": plan.engine,
            "format": "png" if wish.crop else made,
            "notes": list(dict.fromkeys(notes)),
        }

    def do(self, source: Path, target: Path, wish: Wish, tell: Callable[[float, float], None]) -> dict[str, Any]:
        """Make the result.

        Args:
            source: the picture.
            target: file to write.
            wish: what to do.
            tell: function called with megapixels done and in all; it may raise `StoppedError`.

        Returns:
            Plain data: width, height, frames, megapixels, seconds, engine, notes.
        """
        film = is_film(source)
        upscaler = self._upscaler("work", _for_film(wish) if film else wish)
        if film and wish.crop is None:
            return do_film(upscaler, source, target, tell)
        if wish.crop is None:
            result = upscaler.upscale_file(
                source, target, overwrite=True, progress=lambda done, whole, _: tell(done, whole)
            ).to_dict()
            return {key: value for key, value in result.items() if key not in ("source", "target")}
        begun = time.perf_counter()
        picture = _cropped(_first(source), wish.crop)
        large = upscaler(picture, progress=lambda done, whole, _: tell(done, whole))
        images.write(target, large, overwrite=True)
        height, width = large.pixels.shape[:2]
        return {
            "width": width,
            "height": height,
            "frames": 1,
            "megapixels": width * height / 1e6,
            "seconds": time.perf_counter() - begun,
            "bundle": upscaler.name,
            "engine": upscaler.engine(),
            "threads": upscaler.threads,
            "notes": list(upscaler.notes),
        }


def _for_film(wish: Wish) -> Wish:
    """A look at each frame would make a film flicker."""
    return replace(wish, clean="off") if wish.clean == "auto" else wish


def _first(path: Path) -> images.Picture:
    """The first frame of a picture, or the one that stands for a film."""
    return images.Picture(poster(path), alpha=False) if is_film(path) else images.read(path).frame(0)


def _cropped(picture: images.Picture, crop: tuple[int, int, int, int] | None) -> images.Picture:
    if crop is None:
        return picture
    left, top, width, height = crop
    return replace(picture, pixels=picture.pixels[top : top + height, left : left + width])


def preview(path: Path, target: Path, size: tuple[int, int], crop: tuple[int, int, int, int] | None = None) -> None:
    """Write a small PNG of a picture, for a browser.

    Args:
        path: picture to show.
        target: PNG to write.
        size: width and height of the result of which the preview is one; the preview's longest side is at most
            `PREVIEW_SIDE`.
        crop: part of the picture to show; None for all of it.

    Raises:
        RefusedError: the picture is too large to be shown (413).
    """
    from PIL import Image

    megapixels = size[0] * size[1] / 1e6 if is_film(path) else images.probe(path).megapixels
    if megapixels > PREVIEW_MEGAPIXELS:
        raise RefusedError(
            413, f"{megapixels:.0f} megapixels are too many for a preview; download the result, or try a crop"
        )
    pixels = _cropped(_first(path), crop).pixels
    if pixels.dtype.itemsize > 1:
        pixels = (pixels >> 8).astype("uint8")
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    share = min(1.0, PREVIEW_SIDE / max(size))
    wanted = (max(1, round(size[0] * share)), max(1, round(size[1] * share)))
    shown.resize(wanted, Image.Resampling.BICUBIC).save(target, "PNG", compress_level=1)
