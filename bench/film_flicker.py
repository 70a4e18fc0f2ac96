"""Flicker of enlarged films beside bicubic: how far changes from frame to frame are from those of the original.

    python bench/film_flicker.py clip.mp4 …      # clips of your own; each is made half as large first

For every pair of frames, the change of luminance in the enlarged film is compared with that in the original:

    flicker = mean |(E_{t+1} − E_t) − (O_{t+1} − O_t)|, levels of 255

A network that invents detail anew in each frame flickers more than bicubic; one that restores what is there, less.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from foveal import Upscaler
from foveal.measure.quality import luma
from foveal.runtime.film.source import frames, header, rgb

FRAMES = 60


def flicker(clip: Path, enlarge) -> float:
    """Mean distance of the changes from frame to frame, in levels."""
    film, last, found = header(clip), None, []
    for shot in islice(frames(clip), FRAMES):
        original = rgb(shot, film)
        original = original[: original.shape[0] // 2 * 2, : original.shape[1] // 2 * 2]
        size = original.shape[1] // 2, original.shape[0] // 2
        small = np.asarray(Image.fromarray(original).resize(size, Image.Resampling.BICUBIC))
        now = luma(enlarge(small)), luma(original)
        if last is not None:
            found.append(np.abs((now[0] - last[0]) - (now[1] - last[1])).mean())
        last = now
    return float(np.mean(found))


def bicubic(small):
    """Twice as large by Pillow's bicubic interpolation."""
    size = small.shape[1] * 2, small.shape[0] * 2
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def main() -> None:
    """Print one line for each clip."""
    ways = {"bicubic": bicubic, **{q: Upscaler(2, q, clean="off") for q in ("fast", "balanced")}}
    print("| clip | " + " | ".join(ways) + " |\n|---|" + "---|" * len(ways))
    for clip in map(Path, sys.argv[1:]):
        print(f"| {clip.name} | " + " | ".join(f"{flicker(clip, way):.3f}" for way in ways.values()) + " |")


if __name__ == "__main__":
    main()
