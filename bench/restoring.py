"""Repairs of `foveal restore` on BSD100's pictures at their own size, by the command's own way through a picture.

    python bench/restoring.py                        noise, JPEG, dark, rain and snow: gain over the damaged picture
    python bench/restoring.py --limit 20             the first pictures only
    python bench/restoring.py --save results/restoring   also Markdown and JSON

PSNR of RGB, no border shaved. Noise before rounding, JPEG by Pillow in 4:2:0 and read from its file's tables. Beside
light stands the best single gamma for each picture, found by its true picture, which no program can know.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from foveal.measure.benchmarks import find
from foveal.measure.quality import benchmark_pairs
from foveal.runtime.restorer import Restorer
from foveal.train.restore.bank import bank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOISES, QUALITIES = (15, 25, 50), (10, 20, 40, 60, 90)
GAMMAS = np.linspace(0.15, 1.5, 28)


def psnr(a: NDArray, b: NDArray) -> float:
    """PSNR of 8-bit RGB.

    Args:
        a: (H, W, 3).
        b: the same.

    Returns:
        dB.
    """
    return float(10 * np.log10(255**2 / max(np.square(a.astype(np.float64) - b).mean(), 1e-3)))


def _noise(sigma: float) -> Callable[[NDArray, int], NDArray]:
    def damage(picture: NDArray, seed: int) -> NDArray:
        made = picture + np.random.default_rng(seed).normal(0, sigma, picture.shape)
        return np.clip(np.rint(made), 0, 255).astype(np.uint8)

    return damage


def _jpeg(quality: int) -> Callable[[NDArray, int], Image.Image]:
    def damage(picture: NDArray, seed: int) -> Image.Image:  # noqa: ARG001
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        opened = Image.open(file)
        opened.load()
        return opened

    return damage


def _banked(name: str) -> Callable[[NDArray, int], NDArray]:
    def damage(picture: NDArray, seed: int) -> NDArray:
        generator = torch.Generator().manual_seed(seed)
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        out = bank(name).draw(generator)(x, generator)
        return out[0].mul(255).round().byte().permute(1, 2, 0).numpy()

    return damage


def best_gamma(damaged: NDArray, wanted: NDArray) -> float:
    """PSNR of the best single gamma, which only who has the true picture can know.

    Args:
        damaged: (H, W, 3).
        wanted: the same.

    Returns:
        dB.
    """
    levels = np.arange(256) / 255
    tables = [np.rint(255 * levels**gamma).astype(np.uint8) for gamma in GAMMAS]
    return max(psnr(table[damaged], wanted) for table in tables)


def cases() -> Iterator[tuple[str, str, Callable[[NDArray, int], NDArray | Image.Image]]]:
    """What is measured.

    Yields:
        Name, what `--fix` asks for, and the damage.
    """
    for sigma in NOISES:
        yield f"noise {sigma}", "noise", _noise(sigma)
    for quality in QUALITIES:
        yield f"JPEG {quality}", "jpeg", _jpeg(quality)
    for name, fix in (("dark", "light"), ("rain", "rain"), ("snow", "snow")):
        yield name, fix, _banked(name)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    pictures = [high for _, _, high in benchmark_pairs(find("BSD100"), 4, limit=options.limit)]
    rows = []
    for name, fix, damage in cases():
        restore = Restorer(fix, engine=options.engine, threads=options.threads)
        before, after, gamma, spent, pixels = [], [], [], 0.0, 0
        for seed, picture in enumerate(pictures):
            given = damage(picture, seed)
            start = time.perf_counter()
            made = np.asarray(restore(given))
            spent += time.perf_counter() - start
            pixels += picture.shape[0] * picture.shape[1]
            before.append(psnr(np.asarray(given), picture))
            after.append(psnr(made, picture))
            if fix == "light":
                gamma.append(best_gamma(np.asarray(given), picture))
        row = {
            "damage": name,
            "damaged": float(np.mean(before)),
            "restored": float(np.mean(after)),
            "gain": float(np.mean(after) - np.mean(before)),
            "worse": int(np.sum(np.array(after) < np.array(before) - 0.005)),
            "best_gamma": float(np.mean(gamma)) if gamma else None,
            "seconds_per_megapixel": spent / (pixels / 1e6),
        }
        rows.append(row)
        print(row, flush=True)
    lines = [
        "| damage | damaged, dB | restored, dB | gain | worse, of " + str(len(pictures)) + " | best gamma, dB | s/MP |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        best = "" if row["best_gamma"] is None else f"{row['best_gamma']:.2f}"
        lines.append(
            f"| {row['damage']} | {row['damaged']:.2f} | {row['restored']:.2f} | {row['gain']:+.2f} | {row['worse']} "
            f"| {best} | {row['seconds_per_megapixel']:.2f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.save:
        options.save.with_suffix(".md").write_text(text, encoding="utf-8")
        options.save.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
