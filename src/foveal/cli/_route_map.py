"""`foveal upscale --map`: where the work of a budget went, drawn over the picture."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from foveal.cli._speech import say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.runtime.batch import Job

__all__ = ["mapped", "shown"]

_LONGEST = 2048  # pixels of a map


def shown(pixels: NDArray) -> NDArray[np.uint8]:
    """A picture as a map shows it: 8 bits, without alpha, every so many pixels of a large one.

    Args:
        pixels: (H, W, C), uint8 or uint16.

    Returns:
        (h, w) or (h, w, 3) uint8.
    """
    every = -(-max(pixels.shape[:2]) // _LONGEST)
    small = pixels[::every, ::every]
    if small.dtype == np.uint16:
        small = small >> 8
    small = small[..., :-1] if small.shape[2] in (2, 4) else small
    return np.ascontiguousarray(small[..., 0] if small.shape[2] == 1 else small, np.uint8)


@contextmanager
def mapped(path: Path | None, job: Job, limit_pixels: int) -> Iterator[None]:
    """Draw the map of the picture that is made inside the block.

    Args:
        path: PNG to write; None for no map.
        job: the picture.
        limit_pixels: largest number of pixels of a source.

    Yields:
        Nothing.
    """
    if path is None:
        yield
        return
    from PIL import Image

    from foveal import images
    from foveal.runtime.route import recording

    with recording() as routes:
        yield
    if len(routes) != 1:
        say(f"no map {path}: one network makes {job.named}, all frames alike", sys.stderr)
        return
    picture = images.read(job.source, limit_pixels=limit_pixels).frame(job.page or 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(routes[0].draw(shown(picture.pixels))).save(path)
