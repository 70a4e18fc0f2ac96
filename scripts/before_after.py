"""Makes README's before and after and the gallery of the docs, and writes their figures: `make picture`.

What is measured stands between markers such as `<!-- picture:start -->` and `<!-- picture:end -->` in README and in the
docs; nobody types it. Figures of benchmark sets and of speed are taken from `results/restore.json`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal import Upscaler
from foveal.images import imresize
from foveal.measure.quality import psnr

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "dogs"
SCALE = 4
BOX = (100, 76, 292, 268)  # the crop that is shown: left, top, right, bottom in pixels of the result
ZOOM = 2  # nearest-neighbour zoom, so that browsers do not smooth the difference away
BAND = 28  # height of the line of text above each half, in pixels
GAP = 8  # between two halves
PICTURE = Path("docs/assets/before_after.png")
PAGES = (Path("README.md"), Path("docs/index.md"))
START, END = "<!-- picture:start -->", "<!-- picture:end -->"
GALLERY = (  # file, sample, left and top of a part of 128×128 pixels
    ("hands", "clock", 560, 120),
    ("cables", "bridge", 300, 210),
    ("mark", "clock", 200, 120),
    ("face", "dogs", 230, 310),
    ("seeds", "dandelion", 90, 30),
    ("weave", "clock", 30, 380),
)
SIDE = 128
RESULTS = Path("results/restore.json")


def read(path: Path) -> np.ndarray:
    """Read the pixels of a picture.

    Args:
        path: file of the picture.

    Returns:
        (H, W, 3), uint8.
    """
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def side_by_side(parts: Sequence[tuple[str, np.ndarray]], *, columns: int | None = None) -> Image.Image:
    """Parts of one size beside each other, each with its caption above.

    Args:
        parts: caption and picture, (H, W, 3), uint8.
        columns: how many stand in a row; all of them by default.

    Returns:
        The picture.
    """
    columns = columns or len(parts)
    height, width = (side * ZOOM for side in parts[0][1].shape[:2])
    rows = -(-len(parts) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + BAND)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, part) in enumerate(parts):
        left, top = index % columns * (width + GAP), index // columns * (height + BAND)
        draw.text((left + 4, top + 5), caption, fill="black", font=ImageFont.load_default(size=15))
        sheet.paste(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST), (left, top + BAND))
    return sheet


def filled(text: str, line: str, name: str = "picture") -> str:
    """A page with what stands between two markers replaced.

    Args:
        text: text of the page.
        line: what goes between the markers.
        name: name of the markers.

    Returns:
        The page.

    Raises:
        ValueError: if the page does not contain each of the two markers exactly once.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"a page needs one {start} and one {end}, each once")
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{line}\n{end}", text, flags=re.DOTALL)


def measured(results: dict[str, Any], name: str, engine: str) -> dict[str, Any]:
    """One row of the recorded bench at `SCALE`.

    Args:
        results: content of `results/restore.json`.
        name: name of the bundle, or "bicubic".
        engine: name of the engine.

    Returns:
        The row.
    """
    return {(row["name"], row["engine"], row["scale"]): row for row in results["rows"]}[name, engine, SCALE]


def gain(results: dict[str, Any], bundle: str, data: str) -> float:
    """How much nearer to the originals of a benchmark a bundle comes than bicubic.

    Args:
        results: content of `results/restore.json`.
        bundle: name of a bundle of scale `SCALE`.
        data: name of the benchmark set.

    Returns:
        Difference of mean PSNR, dB.
    """
    ours = measured(results, bundle, "native")["quality"][data][0]
    return ours - measured(results, "bicubic", "Pillow")["quality"][data][0]


def speed(results: dict[str, Any]) -> str:
    """What the native kernels give, in one sentence.

    Args:
        results: content of `results/restore.json`.

    Returns:
        Plain text.
    """
    rows = {(row["name"], row["engine"]): row["median"] for row in results["rows"]}
    ratios = sorted(
        rows[name, "onnxruntime"] / seconds for (name, engine), seconds in rows.items() if engine == "native"
    )
    best = measured(results, f"balanced_x{SCALE}", "native")["median"]
    return (
        f"`native` takes {best:.2f} s per megapixel of result with `balanced_x{SCALE}` and is {ratios[0]:.1f} to "
        f"{ratios[-1]:.1f} times as fast as ONNX Runtime over the {len(ratios)} shipped bundles ({results['threads']} "
        f"threads, {results['machine']['processor']}, int8 by AVX-512 VNNI, {results['date']}). In float32, on "
        f"processors without these instructions, the gain is smaller."
    )


def sample(name: str, upscaler: Upscaler) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One sample: enlarged by bicubic interpolation, enlarged by foveal, and as it was.

    Args:
        name: name of the sample.
        upscaler: the upscaler.

    Returns:
        Three pictures of one size.
    """
    low = read(ROOT / "samples" / f"{name}.png")
    return imresize(low, SCALE), upscaler(low), read(ROOT / "samples" / "original" / f"{name}.png")


def gallery(upscaler: Upscaler) -> str:
    """Write the sheets of the gallery.

    Args:
        upscaler: the upscaler.

    Returns:
        A table of the samples' figures, Markdown.
    """
    lines = ["| sample | bicubic | foveal | gain |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(name for _, name, _, _ in GALLERY):
        pictures = sample(name, upscaler)
        before, after = (psnr(image, pictures[2], shave=SCALE) for image in pictures[:2])
        lines.append(f"| {name} | {before:.2f} dB | {after:.2f} dB | {after - before:+.2f} dB |")
        for file, of, left, top in GALLERY:
            if of == name:
                parts = [image[top : top + SIDE, left : left + SIDE] for image in pictures]
                figures = [f": {psnr(part, parts[2], shave=0):.2f} dB" for part in parts[:2]]
                words = [f"{word}{figure}" for word, figure in zip(("bicubic", "foveal"), figures, strict=True)]
                sheet = side_by_side(list(zip([*words, "original"], parts, strict=True)))
                sheet.save(ROOT / "docs" / "assets" / f"gallery_{file}.png", optimize=True)
    return "\n".join(lines)


def replace(page: Path, line: str, name: str) -> None:
    """Write a line between two markers of a page.

    Args:
        page: path below the repository's root.
        line: the line.
        name: name of the markers.
    """
    path = ROOT / page
    path.write_text(filled(path.read_text(encoding="utf-8"), line, name), encoding="utf-8")


def main() -> None:
    """Make the pictures and fill in the pages."""
    results = json.loads((ROOT / RESULTS).read_text(encoding="utf-8"))
    upscaler = Upscaler(SCALE)
    before, after, there = sample(SAMPLE, upscaler)
    figures = [psnr(image, there, shave=SCALE) for image in (before, after)]
    left, top, right, bottom = BOX
    parts = [image[top:bottom, left:right] for image in (before, after)]
    names = ("bicubic", f"foveal, {upscaler.card.name}")
    captions = [f"{name}: {figure:.2f} dB" for name, figure in zip(names, figures, strict=True)]
    (ROOT / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    side_by_side(list(zip(captions, parts, strict=True))).save(ROOT / PICTURE, optimize=True)
    line = (
        f"×{SCALE} from {there.shape[1] // SCALE}×{there.shape[0] // SCALE} pixels: bicubic {figures[0]:.2f} dB, "
        f"foveal's `{upscaler.card.name}` {figures[1]:.2f} dB ({figures[1] - figures[0]:+.2f}) against the original. "
        f"That is one picture; the mean gain over the 100 photographs of BSD100 is "
        f"{gain(results, upscaler.card.name, 'BSD100'):+.2f} dB. Reproduce with `make picture`."
    )
    for page in PAGES:
        replace(page, line, "picture")
        replace(page, speed(results), "speed")
    replace(Path("docs/gallery.md"), gallery(upscaler), "gallery")
    print(line, file=sys.stdout)


if __name__ == "__main__":
    main()
