"""Create README's before-and-after picture from a sample, and write the measured figures below it: `make picture`.

The figures are between `<!-- picture:start -->` and `<!-- picture:end -->`, in README and on the docs' first page, and
are never edited by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal import Upscaler
from foveal.images import imresize
from foveal.measure.quality import psnr

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "dogs"
SCALE = 4
BOX = (100, 76, 292, 268)  # the crop that is shown: left, top, right, bottom in pixels of the result
ZOOM = 2  # nearest-neighbour zoom, so that browsers do not smooth the difference away
BAND = 28  # height of the line of text above each half, in pixels
PICTURE = Path("docs/assets/before_after.png")
PAGES = (Path("README.md"), Path("docs/index.md"))
START, END = "<!-- picture:start -->", "<!-- picture:end -->"


def read(path: Path) -> np.ndarray:
    """Read the pixels of a picture.

    Args:
        path: path of the picture.

    Returns:
        (H, W, 3), uint8.
    """
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def side_by_side(halves: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Place crops of one size side by side, each below its caption.

    Args:
        halves: caption and picture, (H, W, 3), uint8.

    Returns:
        The picture.
    """
    height, width = (side * ZOOM for side in halves[0][1].shape[:2])
    gap = 8
    sheet = Image.new("RGB", (len(halves) * (width + gap) - gap, height + BAND), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, part) in enumerate(halves):
        left = index * (width + gap)
        draw.text((left + 4, 5), caption, fill="black", font=ImageFont.load_default(size=15))
        sheet.paste(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST), (left, BAND))
    return sheet


def filled(text: str, line: str) -> str:
    """A page with the figures between the markers replaced.

    Args:
        text: text of the page.
        line: line with the figures.

    Returns:
        The page.

    Raises:
        ValueError: if the page does not contain each of the two markers exactly once.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"a page needs one {START} and one {END}, each once")
    return re.sub(f"{START}.*?{END}", lambda _: f"{START}\n{line}\n{END}", text, flags=re.DOTALL)


def main() -> None:
    """Create the picture and update the pages."""
    low, there = read(ROOT / "samples" / f"{SAMPLE}.png"), read(ROOT / "samples" / "original" / f"{SAMPLE}.png")
    upscaler = Upscaler(SCALE)
    before, after = imresize(low, SCALE), upscaler(low)
    figures = [psnr(image, there, shave=SCALE) for image in (before, after)]
    left, top, right, bottom = BOX
    parts = [image[top:bottom, left:right] for image in (before, after)]
    names = ("bicubic", f"foveal, {upscaler.card.name}")
    captions = [f"{name}: {figure:.2f} dB" for name, figure in zip(names, figures, strict=True)]
    (ROOT / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    side_by_side(list(zip(captions, parts, strict=True))).save(ROOT / PICTURE, optimize=True)
    line = (
        f"×{SCALE} from {low.shape[1]}×{low.shape[0]} pixels: bicubic {figures[0]:.2f} dB, "
        f"foveal's `{upscaler.card.name}` {figures[1]:.2f} dB ({figures[1] - figures[0]:+.2f}), measured against the "
        f"original over the whole picture; `make picture` does it again."
    )
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8"), line), encoding="utf-8")
    print(line, file=sys.stdout)


if __name__ == "__main__":
    main()
