"""A part of a picture, repaired as it would be in the whole: the whole is what is looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal import images
from foveal.runtime.enlarge import counter
from foveal.runtime.film.film import is_film
from foveal.runtime.film.restore import FilmRestorer
from foveal.runtime.ways import Whole
from foveal.serve.film import poster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foveal.runtime.repairs import Finding
    from foveal.runtime.restorer import Restorer

__all__ = ["restored_part"]


def restored_part(
    restorer: Restorer,
    source: Path,
    crop: tuple[int, int, int, int],
    *,
    page: bool,
    tell: Callable[[float, float], None],
) -> tuple[images.Picture, list[str]]:
    """Repair a part of a picture's first frame, or of the frame that stands for a film.

    Args:
        restorer: what repairs.
        source: the picture or film.
        crop: left, top, width and height of the part.
        page: each page of a document becomes a picture of its own.
        tell: function called with megapixels done and in all; it may raise to stop the work.

    Returns:
        The part, (height, width, C), and what the user should know of it.
    """
    if is_film(source):
        picture = images.Picture(poster(source), alpha=False)
        return _repaired(restorer, FilmRestorer(restorer, source).findings, picture, crop, tell)
    info = images.probe(source)
    picture = images.read(source).frame(0)
    if info.frames == 1 and info.format != "gif":
        found = restorer.look(source)  # a file, because a JPEG states its quality
    else:
        found = tuple(
            one for one in restorer.look(picture) if (page and info.format == "tiff") or one.repair != "clean"
        )
    return _repaired(restorer, found, picture, crop, tell)


def _repaired(
    restorer: Restorer,
    found: tuple[Finding, ...],
    picture: images.Picture,
    crop: tuple[int, int, int, int],
    tell: Callable[[float, float], None],
) -> tuple[images.Picture, list[str]]:
    """The part, by what was found in the whole."""
    left, top, width, height = crop
    rows, columns = slice(top, top + height), slice(left, left + width)
    pixels, steps = picture.pixels, max(1, len(found))
    notes = ["; ".join(one.says for one in found) or "nothing found to repair"]
    step = counter(lambda done, whole, _: tell(done, whole), height * width * steps)
    # Formulas see the whole picture; from the first network on the part is enough.
    while found and isinstance(found[0].way, Whole):
        pixels, found = found[0].way.picture(pixels, picture.alpha), found[1:]
        if step is not None:
            step((left, top, left + width, top + height))
    part: Any = np.ascontiguousarray(pixels[rows, columns])
    for one in found:
        part = one.way.picture(part, picture.alpha, step, notes.append)
    return replace(picture, pixels=part), [*restorer.notes, *dict.fromkeys(notes)]
