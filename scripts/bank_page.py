"""Makes the picture of docs/degradations.md: `python scripts/bank_page.py`.

One part of a sample under each degradation of `foveal.train.restore.bank`, at the strengths that it has by default.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from foveal.train.restore.bank import NAMES, bank

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "assets" / "bank.webp"
SIDE, GAP, BAND, COLUMNS = 168, 6, 22, 5
SAMPLE, LEFT, TOP = "dogs", 80, 110


def sheet() -> Image.Image:
    """The parts with their names.

    Returns:
        The picture.
    """
    with Image.open(ROOT / "samples" / "original" / f"{SAMPLE}.png") as opened:
        pixels = np.asarray(opened.convert("RGB"))[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    clean = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    made = {"as it is": clean}
    made |= {name: bank(name)()(clean, torch.Generator().manual_seed(0)) for name in NAMES}
    rows = -(-len(made) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, rows * (SIDE + BAND + GAP) - GAP), "white")
    draw = ImageDraw.Draw(page)
    for place, (name, picture) in enumerate(made.items()):
        left, top = place % COLUMNS * (SIDE + GAP), place // COLUMNS * (SIDE + BAND + GAP)
        draw.text((left + 4, top + 3), name, fill="black", font=ImageFont.load_default(size=14))
        part = picture[0].mul(255).round().byte().permute(1, 2, 0).numpy()
        page.paste(Image.fromarray(part), (left, top + BAND))
    return page


if __name__ == "__main__":
    sheet().save(PAGE, quality=85, method=6)
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size} bytes")
