"""Upscale the sample pictures by 4 as a user would, print the results, and write a before-and-after page.

Run by `make demo`, in an environment with the light install, the native kernels and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from foveal.images import imresize
from foveal.measure.quality import psnr

ROOT = Path(__file__).resolve().parents[1]
SCALE = 4


def pixels(path: Path) -> np.ndarray:
    """Read the pixels of a picture.

    Args:
        path: path of the picture.

    Returns:
        (H, W, 3), uint8.
    """
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def gain(sample: Path, result: Path, original: Path) -> tuple[float, float]:
    """Compare bicubic and foveal with the original.

    Args:
        sample: picture that was upscaled.
        result: foveal's result.
        original: picture before it was reduced to the sample.

    Returns:
        Luminance PSNR without the outermost 4 pixels, in dB, of bicubic and of foveal.
    """
    there = pixels(original)
    return (
        psnr(imresize(pixels(sample), SCALE), there, shave=SCALE),
        psnr(pixels(result), there, shave=SCALE),
    )


def main() -> None:
    """Run `foveal upscale` on the samples and print a table."""
    foveal = Path(sys.executable).with_name("foveal")
    command = [
        str(foveal),
        "upscale",
        "samples",
        "-o",
        "demo",
        "--scale",
        str(SCALE),
        "--compare",
        "--overwrite",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    run = json.loads(done.stdout)
    print(f"\nfoveal {run['foveal']}, bundle {run['bundle']}, {run['engine']}, {run['threads']} threads\n")
    print("picture        result     megapixels  seconds  bicubic dB  foveal dB   gain")
    gains = []
    for file in run["files"]:
        sample, result = ROOT / file["source"], ROOT / file["target"]
        line = f"{sample.stem:<12} {file['width']:>5}×{file['height']:<5} {file['megapixels']:>10.2f}"
        line += f" {file['seconds']:>8.2f}"
        original = sample.parent / "original" / sample.name
        if original.exists():
            before, after = gain(sample, result, original)
            gains.append(after - before)
            line += f" {before:>11.2f} {after:>10.2f} {after - before:>+6.2f}"
        print(line)
    seconds = sum(file["seconds"] for file in run["files"])
    megapixels = sum(file["megapixels"] for file in run["files"])
    print(f"\n{len(run['files'])} pictures, {megapixels:.2f} MP in {seconds:.2f} s, reading and writing included")
    if gains:
        print(f"{np.mean(gains):+.2f} dB over bicubic on average, on {len(gains)} pictures whose original is known")
    for page in run["pages"]:
        print(f"before and after: {page}")


if __name__ == "__main__":
    main()
