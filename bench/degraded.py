"""Sources as people have them: what upscaling makes of compressed and noisy pictures, over bicubic.

    python bench/degraded.py                                        the shipped networks, without and with cleaning
    python bench/degraded.py --weights runs/clean_balanced_x4       trained weights of LumaClean beside them
    python bench/degraded.py --weights ... --level read             told what foveal reads in the picture, not the truth
    python bench/degraded.py --save results/degraded                also results/degraded.json
    python bench/degraded.py --scale 2                              at another scale; a set that lacks it is reduced

Set5, Set14 and the first pictures of BSD100, the small picture damaged: JPEG by Pillow (4:2:0), Gaussian noise before
rounding, the same for each run. A row is the mean gain over bicubic of the same damaged picture; the first row is
bicubic itself. PSNR and SSIM of luminance, PSNR of RGB, borders of `scale` pixels shaved; "below" counts pictures that
are worse than bicubic by luminance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from foveal.images import degradation
from foveal.images.resize import imresize
from foveal.measure.benchmarks import find
from foveal.measure.quality import benchmark_pairs, psnr, ssim
from foveal.runtime.upscaler import Upscaler
from foveal.train.restore.degradations import NOISE_UNIT, add_noise, encode_jpeg

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETS = (("Set5", None), ("Set14", None), ("BSD100", 20))


@dataclass(frozen=True)
class Damaged:
    """A damaged picture, its true level, and the quality that its file states."""

    pixels: NDArray[np.uint8]
    level: tuple[float, float, float]
    quality: int | None = None

    def given(self) -> Any:
        """What a program is given: of a JPEG file also its tables."""
        if self.quality is None:
            return self.pixels
        picture = Image.fromarray(self.pixels)
        picture.format = "JPEG"
        picture.quantization = {0: degradation.jpeg_table(self.quality).astype(int).ravel().tolist()}
        return picture


Damage = Callable[["NDArray[np.uint8]", np.random.Generator], Damaged]


def jpeg(low: NDArray[np.uint8], rng: np.random.Generator, *, quality: int, sigma: float = 0.0) -> Damaged:
    if sigma:
        low = add_noise(low, sigma, rng)
    level = degradation.jpeg_level(quality)
    return Damaged(encode_jpeg(low, quality), (level, 0.0, 0.0), quality)


def noise(low: NDArray[np.uint8], rng: np.random.Generator, *, sigma: float, grey: bool = False) -> Damaged:
    told = sigma * (1.5 if grey else 1.0) / NOISE_UNIT
    return Damaged(add_noise(low, sigma, rng, grey=grey), (0.0, told, 0.0 if grey else told))


def twice(low: NDArray[np.uint8], rng: np.random.Generator, *, first: int, last: int) -> Damaged:  # noqa: ARG001
    return Damaged(encode_jpeg(encode_jpeg(low, first), last), (degradation.jpeg_level(first), 0.0, 0.0), last)


def cropped(low: NDArray[np.uint8], rng: np.random.Generator, *, quality: int) -> Damaged:
    """Saved as PNG after a cut, so that the grid of blocks lies elsewhere and no file states the quality."""
    rows, columns = (int(n) for n in rng.integers(1, 8, 2))
    whole = np.pad(low, ((rows, 0), (columns, 0), (0, 0)), mode="edge")
    return Damaged(encode_jpeg(whole, quality)[rows:, columns:], (degradation.jpeg_level(quality), 0.0, 0.0))


CONDITIONS: dict[str, Damage] = {
    "clean": lambda low, _: Damaged(low, (0.0, 0.0, 0.0)),
    "q90": partial(jpeg, quality=90),
    "q75": partial(jpeg, quality=75),
    "q60": partial(jpeg, quality=60),
    "q40": partial(jpeg, quality=40),
    "n5": partial(noise, sigma=5),
    "n10": partial(noise, sigma=10),
    "n5+q75": partial(jpeg, quality=75, sigma=5),
    "q50+q90": partial(twice, first=50, last=90),
    "grey7": partial(noise, sigma=7, grey=True),
    "crop60": partial(cropped, quality=60),
}
MAIN = tuple(CONDITIONS)[:8]


def rgb_psnr(out: NDArray, high: NDArray, shave: int) -> float:
    inside = slice(shave, -shave)
    error = np.square(out[inside, inside].astype(float) - high[inside, inside]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def scores(out: NDArray, high: NDArray, scale: int, *, structure: bool) -> tuple[float, float, float]:
    similar = ssim(out, high, shave=scale) if structure else float("nan")
    return psnr(out, high, shave=scale), similar, rgb_psnr(out, high, scale)


def shipped(name: str, scale: int, clean: str) -> Callable[[Damaged], NDArray[np.uint8]]:
    upscale = Upscaler(scale, name, clean=clean)
    return lambda damaged: np.asarray(upscale(damaged.given()))


def trained(folder: Path, scale: int, level: str, clean: str) -> Callable[[Damaged], NDArray[np.uint8]]:
    """Weights of LumaClean in torch, clean pictures routed to the shipped network."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    from foveal.models.registry import create_model

    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    model = create_model(recipe["model"], scale=scale, **recipe["arguments"])
    model.load_state_dict(load_file(path))
    model.eval()
    routed = shipped(clean, scale, "off")

    def upscale(damaged: Damaged) -> NDArray[np.uint8]:
        told = damaged.level
        if level == "read":
            stated = None if damaged.quality is None else degradation.jpeg_level(damaged.quality)
            found = degradation.examine(damaged.pixels, file_level=stated)
            told = (found.jpeg, found.noise / NOISE_UNIT, found.colour / NOISE_UNIT)
        if degradation.Degradation(told[0], told[1] * NOISE_UNIT).slight and level != "always":
            return routed(damaged)
        margin = model.margin
        x = np.pad(damaged.pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
        with torch.inference_mode():
            out = model.plain(told)(torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255)[0]
        return out.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()

    return upscale


def measure(
    upscale: Callable[[Damaged], NDArray[np.uint8]], conditions: list[str], scale: int, *, structure: bool
) -> dict[str, NDArray[np.float64]]:
    """For each condition the scores of every picture, (pictures, 3)."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in conditions}
    pictures = [pair for name, limit in SETS for pair in benchmark_pairs(find(name), scale, limit=limit)]
    for index, (_, low, high) in enumerate(pictures):
        for name in conditions:
            damaged = CONDITIONS[name](low, np.random.default_rng((index, len(name))))
            found[name].append(scores(upscale(damaged), high, scale, structure=structure))
    return {name: np.array(rows) for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="folders with model.safetensors")
    parser.add_argument("--level", choices=("true", "read", "always"), default="true")
    parser.add_argument("--clean", default="balanced", help="quality of the shipped network that clean pictures take")
    parser.add_argument("--shipped", nargs="*", default=["fast", "balanced"])
    parser.add_argument("--conditions", default=",".join(CONDITIONS))
    parser.add_argument("--ssim", action="store_true")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    conditions = args.conditions.split(",")
    run = partial(measure, conditions=conditions, scale=args.scale, structure=args.ssim)
    networks: dict[str, Any] = {
        f"{name}, clean {clean}": shipped(name, args.scale, clean) for name in args.shipped for clean in ("off", "auto")
    }
    networks |= {str(path): trained(path, args.scale, args.level, args.clean) for path in args.weights}
    base = run(lambda damaged: imresize(damaged.pixels, args.scale))
    names = ("PSNR", "SSIM", "RGB") if args.ssim else ("PSNR", "RGB")
    columns = (0, 1, 2) if args.ssim else (0, 2)
    print("| network | | " + " | ".join(conditions) + " |\n|---|---|" + "---|" * len(conditions))
    saved = {"bicubic": {name: rows.tolist() for name, rows in base.items()}}
    for name, column in zip(names, columns, strict=True):
        print(f"| bicubic | {name} | " + " | ".join(f"{base[c].mean(0)[column]:.3f}" for c in conditions) + " |")
    for label, network in networks.items():
        found = run(network)
        saved[label] = {name: rows.tolist() for name, rows in found.items()}
        for name, column in zip(names, columns, strict=True):
            gains = [(found[c] - base[c])[:, column].mean() for c in conditions]
            print(f"| {label} | {name} | " + " | ".join(f"{gain:+.3f}" for gain in gains) + " |", flush=True)
        below = [int((found[c][:, 0] < base[c][:, 0]).sum()) for c in conditions]
        print(f"| {label} | below | " + " | ".join(map(str, below)) + " |", flush=True)
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        args.save.with_suffix(".json").write_text(json.dumps(saved) + "\n")


if __name__ == "__main__":
    main()
