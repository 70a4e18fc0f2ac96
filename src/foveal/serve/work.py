"""What the server does with a picture: plan it, try a crop of it, enlarge or repair it, show it before and after."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveal import images
from foveal.images.formats import result_format, sniff
from foveal.images.needs import readable
from foveal.runtime.film.film import is_film
from foveal.runtime.restorer import Restorer
from foveal.serve.document import check_document, do_pages
from foveal.serve.film import checked_film, do_film, film_suffix, plan_of_film, poster
from foveal.serve.limits import Limits, RefusedError
from foveal.serve.restoring import restored_part
from foveal.serve.wish import Restoration, Upscaling, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from foveal.runtime.upscaler import Upscaler

__all__ = ["PREVIEW_SIDE", "Studio", "checked", "preview"]

OPEN = 8  # upscalers and restorers kept open
PREVIEW_SIDE = 1600  # longest side of a preview, in pixels
PREVIEW_MEGAPIXELS = 100  # largest picture that is decoded whole for a preview


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
    if sniff(head) == "tiff":
        check_document(path, name, limits)
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
    """Upscalers and restorers for all that is wished, one picture at a time.

    Args:
        threads: processor threads; None for all.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._made: dict[tuple[str, Upscaling | Restoration], Upscaler | Restorer] = {}
        self._lock = threading.Lock()
        self._planning = {looks: threading.Lock() for looks in (False, True)}

    def _worker(self, use: str, what: Upscaling | Restoration) -> Upscaler | Restorer:
        """Upscalers and restorers are not for several threads, so plans and work have their own."""
        with self._lock:
            made = self._made.pop((use, what), None) or what.worker(self.threads)
            while len(self._made) >= OPEN:  # the one unused for longest goes; a client cannot fill the memory
                del self._made[next(iter(self._made))]
            self._made[use, what] = made
            return made

    def _film_worker(self, use: str, what: Upscaling | Restoration) -> Upscaler | Restorer:
        return self._worker(use, what.of_film() if isinstance(what, Upscaling) else what)

    def plan(self, source: Path, info: images.Info, wish: Wish) -> dict[str, Any]:
        """Size and seconds of a result, and what will not be kept; of a repair, what was found.

        Args:
            source: the picture.
            info: its header.
            wish: what to do.

        Returns:
            Plain data: width, height, frames, files, megapixels, seconds, engine, format, notes.
        """
        if is_film(source) and wish.crop is None:
            upscaler = self._film_worker("plan", wish.what)
            with self._planning[wish.looks]:
                return {**plan_of_film(upscaler, source, info), "files": 1}
        made, scale = wish.format or result_format(info.format), wish.what.scale
        worker = self._worker("plan", wish.what)
        width, height = (wish.crop[2], wish.crop[3]) if wish.crop else (info.width, info.height)
        with self._planning[wish.looks]:
            if wish.crop is None:
                plan = worker.plan(source, file_format=made, look=wish.looks)
            else:
                plan = worker.plan((width, height), file_format=made)
        notes = list(plan.notes)
        if wish.crop is None:
            target = source.with_name(f"plan{wish.ending(source, info)}")
            for page in _kinds(info) if wish.files(info) > 1 else (None,):
                notes += images.foresee(source, target, scale, limit_pixels=info.total_pixels, page=page)
        return {
            "width": width * scale,
            "height": height * scale,
            "frames": 1 if wish.crop else info.frames,
            "files": wish.files(info),
            "megapixels": plan.megapixels,
            "seconds": plan.seconds,
            "engine": plan.engine,
            "format": "png" if wish.crop else made,
            "notes": list(dict.fromkeys(notes)),
        }

    def do(
        self, source: Path, targets: Sequence[Path], wish: Wish, tell: Callable[[float, float], None]
    ) -> dict[str, Any]:
        """Make the result.

        Args:
            source: the picture.
            targets: files to write, several for the pages of a document.
            wish: what to do.
            tell: function called with megapixels done and in all; it may raise `StoppedError`.

        Returns:
            Plain data: width, height, frames, megapixels, seconds, bundle, engine, threads, notes.
        """
        if is_film(source) and wish.crop is None:
            return do_film(self._film_worker("work", wish.what), source, targets[0], tell)
        worker = self._film_worker("work", wish.what) if is_film(source) else self._worker("work", wish.what)
        if wish.crop is not None:
            return _tried(worker, source, targets[0], wish.crop, tell, split=wish.pages == "split")
        if len(targets) > 1:
            return do_pages(worker, source, images.probe(source), targets, tell)
        result = worker.upscale_file(
            source, targets[0], overwrite=True, progress=lambda done, whole, _: tell(done, whole)
        ).to_dict()
        return {key: value for key, value in result.items() if key not in ("source", "target")}


def _kinds(info: images.Info) -> list[int]:
    """Pages that stand for all of a document: the first of each kind, and the largest."""
    pages = info.pages or (info,)
    first = {(page.channels, page.bits): number for number, page in reversed(list(enumerate(pages)))}
    largest = max(range(len(pages)), key=lambda number: max(pages[number].width, pages[number].height))
    return sorted({*first.values(), largest})


def _tried(
    worker: Upscaler | Restorer,
    source: Path,
    target: Path,
    crop: tuple[int, int, int, int],
    tell: Callable[[float, float], None],
    *,
    split: bool,
) -> dict[str, Any]:
    """A part of a picture, as a PNG."""
    begun = time.perf_counter()
    if isinstance(worker, Restorer):
        made, notes = restored_part(worker, source, crop, page=split, tell=tell)
    else:
        part = _cropped(_first(source), crop)
        made, notes = worker(part, progress=lambda done, whole, _: tell(done, whole)), list(worker.notes)
    images.write(target, made, overwrite=True)
    height, width = made.pixels.shape[:2]
    return {
        "width": width,
        "height": height,
        "frames": 1,
        "megapixels": width * height / 1e6,
        "seconds": time.perf_counter() - begun,
        "bundle": worker.name,
        "engine": worker.engine(),
        "threads": worker.threads,
        "notes": notes,
    }


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
