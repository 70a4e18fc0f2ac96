"""Fit how the width of a blur is read from a picture's spectrum, and try it: the numbers of `foveal.images.deblur`.

    python bench/blur_reading.py             fit on training pictures, print the numbers and the errors on others
    python bench/blur_reading.py --every 6 --also data/coco256/images    as the numbers were made

Training pictures are those of bsds400, as they are and at 0.7 of their size, and those of a further folder at half of
theirs, blurred with Gaussians of 0 to 3 pixels; of each two in five get noise of 1 to 5 levels, or become a JPEG of
quality 50 to 95. Every second picture is left out of the fit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foveal.images.deblur import traces, width_of
from foveal.images.resize import imresize
from foveal.measure.benchmarks import find
from foveal.train.restore.bank.blur import Blur
from foveal.train.restore.bank.jpeg import Jpeg
from foveal.train.restore.bank.noise import Noise

SIGMAS = (0, 0.4, 0.7, 1, 1.3, 1.6, 2, 2.5, 3)
RIDGE = 1e-2


def damaged(picture: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """A picture blurred, and then perhaps worse.

    Args:
        picture: (H, W, 3), uint8.
        sigma: of the Gaussian, pixels.
        rng: source of what happens further.

    Returns:
        The same shape and dtype.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    x = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
    x = Blur(sigma)(x, generator)
    chance = rng.random()
    if chance < 0.4:
        x = Noise(float(rng.uniform(1, 5)))(x, generator)
    elif chance < 0.8:
        x = Jpeg(int(rng.integers(50, 96)))(x, generator)
    return x[0].mul(255).round().byte().permute(1, 2, 0).numpy()


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--also", type=Path, help="folder of further JPEG pictures")
    parser.add_argument("--keep", help="file for what was read, .npz")
    options = parser.parse_args()
    rows, wanted, place = [], [], []
    rng = np.random.default_rng(0)
    paths = [(path, (1, 0.7)) for path in sorted(find("bsds400").rglob("*.jpg"))[:: options.every]]
    others = sorted(options.also.rglob("*.jpg")) if options.also else []
    paths += [(path, (0.5,)) for path in others[:: options.every]]
    for number, (path, scales) in enumerate(paths):
        with Image.open(path) as opened:
            whole = np.asarray(opened.convert("RGB"))
        for scale in scales:
            picture = whole if scale == 1 else imresize(whole, scale)
            for sigma in SIGMAS:
                found = traces(damaged(picture, sigma, rng))
                assert found is not None
                rows.append(found)
                wanted.append(sigma)
                place.append(number)
    x, y, group = np.array(rows), np.array(wanted), np.array(place)
    fitted = group % 2 == 0
    design = np.concatenate([x, np.square(x), np.ones((len(x), 1))], axis=1)
    some = design[fitted]
    scale = some.std(0) + 1e-9
    scale[-1] = 1
    normal = (some / scale).T @ (some / scale) + RIDGE * np.eye(len(scale))
    weights = np.linalg.solve(normal, (some / scale).T @ y[fitted]) / scale
    if options.keep:
        np.savez(options.keep, x=x, y=y, group=group)
    print(np.array2string(weights, precision=5, separator=", ", max_line_width=110, suppress_small=True))
    ours = design[~fitted] @ weights
    theirs = np.array([width_of(row) for row in x[~fitted]])
    for sigma in SIGMAS:
        of = y[~fitted] == sigma
        print(
            f"σ {sigma}: fitted now {ours[of].mean():.2f} ± {ours[of].std():.2f}, at most {ours[of].max():.2f}; "
            f"with the numbers of the file {theirs[of].mean():.2f} ± {theirs[of].std():.2f}"
        )


if __name__ == "__main__":
    main()
