"""Makes the crops of docs/restore.md, parts of samples before and after: `python scripts/restore_page.py`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from foveal.runtime.restorer import Restorer
from foveal.train.restore.bank import bank

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "assets" / "restore.webp"
SIDE, GAP, BAND = 220, 6, 24
# Sample, caption, degradation and its strengths, what is asked for, left and top of the crop.
COLUMNS: tuple[tuple[str, str, str, dict[str, float], str, int, int], ...] = (
    ("bridge", "noise of 25 levels", "noise", {"sigma": 25}, "auto", 200, 150),
    ("dogs", "JPEG of quality 15", "jpeg", {"quality": 15}, "auto", 60, 80),
    ("clock", "a tenth of the light", "dark", {"gain": 0.1}, "light", 220, 60),
    ("dandelion", "rain", "rain", {}, "rain", 150, 120),
)


def damaged(picture: np.ndarray, name: str, strengths: dict[str, float]) -> Image.Image:
    """A picture with a degradation of the bank; of a JPEG, with what its file states.

    Args:
        picture: (H, W, 3), uint8.
        name: of the degradation.
        strengths: its fields.

    Returns:
        The damaged picture.
    """
    if name == "jpeg":
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", **strengths)
        opened = Image.open(file)
        opened.load()
        return opened
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    out = bank(name)(**strengths)(x, torch.Generator().manual_seed(0))
    return Image.fromarray(out[0].mul(255).round().byte().permute(1, 2, 0).numpy())


def sheet() -> Image.Image:
    """The crops: before in the upper row, after in the lower one.

    Returns:
        The picture.
    """
    page = Image.new("RGB", (len(COLUMNS) * (SIDE + GAP) - GAP, BAND + 2 * (SIDE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(page)
    for place, (sample, caption, name, strengths, fix, left, top) in enumerate(COLUMNS):
        with Image.open(ROOT / "samples" / "original" / f"{sample}.png") as opened:
            before = damaged(np.asarray(opened.convert("RGB")), name, strengths)
        after = Restorer(fix, engine="onnxruntime")(before)
        x = place * (SIDE + GAP)
        draw.text((x + 4, 4), caption, fill="black", font=ImageFont.load_default(size=14))
        for row, picture in enumerate((before, after)):
            part = np.asarray(picture)[top : top + SIDE, left : left + SIDE]
            page.paste(Image.fromarray(part), (x, BAND + row * (SIDE + GAP)))
    return page


if __name__ == "__main__":
    sheet().save(PAGE, quality=88, method=6)
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size} bytes")
