"""Digits drawn by the font renderer, still and moving: what the claims of this package train on, without a download.

Every picture is its own: turned, slanted, scaled, shifted, of another brightness, with noise. Those of the test are
drawn in the same fonts and are none of the training's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["digits", "moving_digits"]

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmtt10",
)  # fmt: skip
COUNT = {"train": 6000, "test": 1000}


@lru_cache(maxsize=1)
def _glyphs(size: int = 48) -> list[tuple[int, Image.Image]]:
    """Each digit in each font, white on black, in the middle of a square twice as large."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), size)
        for digit in range(10):
            picture = Image.new("L", (2 * size, 2 * size))
            ImageDraw.Draw(picture).text((size, size), str(digit), fill=255, font=font, anchor="mm")
            found.append((digit, picture))
    return found


def _drawn(glyph: Image.Image, side: int, generator: np.random.Generator) -> np.ndarray:
    """One picture of a digit, (side, side), values in [0, 1]."""
    turn, slant = generator.uniform(-0.25, 0.25), generator.uniform(-0.3, 0.3)
    wide, high = generator.uniform(0.75, 1.15, 2)
    cos, sin, centre = np.cos(turn), np.sin(turn), glyph.width / 2
    zoom = 44 / side  # a digit of about 36 pixels in 48 fills four fifths of the picture
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, slant], [0, 1]]) @ np.diag([zoom / wide, zoom / high])
    x, y = centre - matrix @ (np.full(2, side / 2) + generator.uniform(-1.5, 1.5, 2) * side / 16)
    # Drawn at twice the side and halved, because a reducing transform would skip pixels.
    twice = glyph.transform(
        (2 * side, 2 * side),
        Image.Transform.AFFINE,
        (matrix[0, 0] / 2, matrix[0, 1] / 2, x, matrix[1, 0] / 2, matrix[1, 1] / 2, y),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(twice.resize((side, side), Image.Resampling.BOX), np.float32) / 255


@lru_cache(maxsize=4)
def digits(part: str, *, side: int = 16) -> tuple[Tensor, Tensor]:
    """Pictures of single digits.

    Args:
        part: "train", 6,000 in 17 fonts, or "test", 1,000.
        side: of a picture, in pixels.

    Returns:
        Pictures, (n, 1, side, side), about zero mean and unit variance; labels, (n,) int64.
    """
    generator, glyphs = np.random.default_rng(0 if part == "train" else 1), _glyphs()
    pictures, labels = np.empty((COUNT[part], side, side), np.float32), np.empty(COUNT[part], np.int64)
    for i in range(COUNT[part]):
        labels[i], glyph = glyphs[generator.integers(len(glyphs))]
        pictures[i] = generator.uniform(0.6, 1.0) * _drawn(glyph, side, generator)
    pictures += generator.normal(0, 0.1, pictures.shape).astype(np.float32)
    return torch.from_numpy((pictures - 0.2) / 0.3)[:, None], torch.from_numpy(labels)


@lru_cache(maxsize=4)
def moving_digits(part: str, count: int, *, frames: int = 20, side: int = 32) -> Tensor:
    """Films of two digits that move straight on and bounce off the borders.

    Args:
        part: "train" or "test".
        count: films.
        frames: T of each.
        side: of a frame, in pixels.

    Returns:
        (count, T, 1, side, side), values in [0, 1].
    """
    generator, glyphs, digit = np.random.default_rng(2 if part == "train" else 3), _glyphs(), side // 2
    films = np.zeros((count, frames, side, side), np.float32)
    room = side - digit
    for film in films:
        for _ in range(2):
            sprite = _drawn(glyphs[generator.integers(len(glyphs))][1], digit, generator)
            angle, speed = generator.uniform(0, 2 * np.pi), generator.uniform(1.0, 3.0)
            start, moved = generator.uniform(0, room, 2), speed * np.array([np.cos(angle), np.sin(angle)])
            for t, frame in enumerate(film):
                # A place that runs on is folded back between the borders.
                x, y = np.rint(room - np.abs((start + t * moved) % (2 * room) - room)).astype(int)
                place = frame[y : y + digit, x : x + digit]
                np.maximum(place, sprite, out=place)
    return torch.from_numpy(films)[:, :, None]
