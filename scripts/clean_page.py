"""Makes the crops of docs/clean.md: `python scripts/clean_page.py`.

Each row is a part of a sample, damaged: as it is, by bicubic interpolation, by foveal without cleaning, and by foveal.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal import Upscaler
from foveal.images import imresize

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "assets" / "clean.webp"
SCALE = 4
SIDE = 46  # pixels of the source that a crop shows
GAP, BAND = 6, 24
CAPTIONS = ("source", "bicubic", "foveal --clean off", "foveal")
# Sample, what is done to it (quality of a JPEG, or noise in levels), and left and top of the crop in its pixels.
ROWS = (
    ("dogs", {"quality": 60}, 40, 50),
    ("bridge", {"quality": 40}, 90, 50),
    ("clock", {"noise": 10}, 110, 10),
)


def damaged(picture: np.ndarray, *, quality: int = 0, noise: float = 0.0) -> Image.Image:
    """A picture as people have it.

    Args:
        picture: (H, W, 3), uint8.
        quality: of a JPEG; 0 for none.
        noise: standard deviation, levels of 255.

    Returns:
        The damaged picture; of a JPEG, with what its file states.
    """
    grain = np.random.default_rng(0).normal(0, noise, picture.shape) if noise else 0
    made = Image.fromarray(np.clip(np.rint(picture + grain), 0, 255).astype(np.uint8))
    if not quality:
        return made
    file = io.BytesIO()
    made.save(file, "JPEG", quality=quality)
    opened = Image.open(file)
    opened.load()
    return opened


def sheet() -> Image.Image:
    """The crops, row by row.

    Returns:
        The picture.
    """
    side = SIDE * SCALE
    page = Image.new("RGB", (len(CAPTIONS) * (side + GAP) - GAP, BAND + len(ROWS) * (side + GAP) - GAP), "white")
    draw = ImageDraw.Draw(page)
    off, auto = (Upscaler(SCALE, "balanced", engine="onnxruntime", clean=clean) for clean in ("off", "auto"))
    for column, caption in enumerate(CAPTIONS):
        draw.text((column * (side + GAP) + 4, 4), caption, fill="black", font=ImageFont.load_default(size=14))
    for row, (name, damage, left, top) in enumerate(ROWS):
        with Image.open(ROOT / "samples" / f"{name}.png") as opened:
            small = damaged(np.asarray(opened.convert("RGB")), **damage)
        pixels = np.asarray(small)
        source = pixels.repeat(SCALE, 0).repeat(SCALE, 1)
        pictures = (source, imresize(pixels, SCALE), np.asarray(off(small)), np.asarray(auto(small)))
        for column, picture in enumerate(pictures):
            part = picture[top * SCALE : top * SCALE + side, left * SCALE : left * SCALE + side]
            page.paste(Image.fromarray(part), (column * (side + GAP), BAND + row * (side + GAP)))
    return page


if __name__ == "__main__":
    sheet().save(PAGE, quality=90, method=6)
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size} bytes")
