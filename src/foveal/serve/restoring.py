"""A part of a picture, repaired as it would be in the whole: the whole is what is looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from foveal import images
from foveal.runtime.enlarge import counter
from foveal.runtime.tiled import tiled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    """Repair a part of a picture's first frame.

    Args:
        restorer: what repairs.
        source: the picture.
        crop: left, top, width and height of the part.
        page: each page of a document becomes a picture of its own.
        tell: function called with megapixels done and in all; it may raise to stop the work.

    Returns:
        The part, (height, width, C), and what the user should know of it.
    """
    info = images.probe(source)
    picture = images.read(source).frame(0)
    if info.frames == 1 and info.format != "gif":
        found = restorer.look(source)  # a file, because a JPEG states its quality
    else:
        found = tuple(
            one for one in restorer.look(picture) if (page and info.format == "tiff") or one.repair != "clean"
        )
    left, top, width, height = crop
    part = picture.pixels[top : top + height, left : left + width]
    last = -1 if part.shape[2] in (2, 4) else None  # what is no colour stays
    colours = np.ascontiguousarray(part[..., :last])
    notes = ["; ".join(one.says for one in found) or "nothing found to repair"]
    step = counter(lambda done, whole, _: tell(done, whole), height * width * max(1, len(found)))
    for one in found:
        out = np.empty_like(colours)
        for _ in tiled(colours, one.network, one.choice, alpha=False, out=out, step=step, note=notes.append):
            pass
        colours = out
    made = part.copy()
    np.copyto(made[..., :last], colours, where=part[..., -1:] > 0 if picture.alpha else np.True_)
    return replace(picture, pixels=made), [*restorer.notes, *dict.fromkeys(notes)]
