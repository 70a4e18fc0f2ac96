"""Fits how noise is read from luminance (`foveal.images.degradation`), and says how often it is wrong.

    python bench/noise_reading.py data/mixed                     prints the weights
    python bench/noise_reading.py data/mixed --check SETS...     and how the reading does on pictures never seen

A logistic regression tells grey noise from clean pictures and JPEGs, a linear one gives its strength; both on
logarithms of quantiles, fitted to crops of training pictures in three sizes. Pictures that are noisy themselves (game
textures, by what R-G and B-G show) are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from foveal.images import degradation
from foveal.images.resize import imresize
from foveal.measure.benchmarks import find
from foveal.measure.quality import benchmark_pairs
from foveal.train.restore.degradations import add_noise, encode_jpeg

COUNT, SELF_NOISY = 900, 1.3


def crops(folder: Path, rng: np.random.Generator) -> list[np.ndarray]:
    paths = sorted(folder.rglob("*.png"))
    found = []
    for path in (paths[k] for k in rng.permutation(len(paths))[:COUNT]):
        with Image.open(path) as opened:
            picture = np.asarray(opened.convert("RGB"))
        scale = int(rng.choice((1, 2, 4)))
        side = int(rng.integers(80, 240)) * scale
        top, left = (int(rng.integers(0, max(1, size - side))) for size in picture.shape[:2])
        part = picture[top : top + side, left : left + side]
        found.append(imresize(part, 1 / scale) if scale > 1 else part)
    return found


def logs(picture: np.ndarray) -> tuple[np.ndarray, float]:
    found = degradation.noise_features(picture)
    assert found is not None
    return np.append(np.log(found[0] + 0.3), 1), found[1]


def fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, *, logistic: bool) -> np.ndarray:
    mean, spread = x.mean(0), x.std(0)
    mean[-1], spread[-1] = 0, 1
    z, target, share = (torch.from_numpy(np.asarray(a, float)) for a in ((x - mean) / spread, y, weights))
    found = torch.zeros(z.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        made = z @ found
        errors = binary_cross_entropy_with_logits(made, target, reduction="none") if logistic else (made - target) ** 2
        total = (share * errors).mean() + 1e-4 * found[:-1].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    plain = found.detach().numpy() / spread
    plain[-1] -= (plain[:-1] * mean[:-1]).sum()
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--check", nargs="*", default=[], help="benchmark sets")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    features, noisy, strength, weights = [], [], [], []
    for picture in crops(args.pictures, rng):
        clean, colour = logs(picture)
        if colour > SELF_NOISY:
            continue
        rows = [(clean, 0.0, 0.0, 8.0)]
        rows += [(logs(encode_jpeg(picture, int(rng.integers(25, 98))))[0], 0.0, 0.0, 2.0) for _ in range(2)]
        for _ in range(4):
            sigma, grey = float(np.exp(rng.uniform(np.log(2), np.log(20)))), bool(rng.random() < 0.6)
            blur = float(rng.uniform(0.03, 0.12)) if rng.random() < 0.25 else 0.0
            told = sigma if grey else sigma / 1.5
            rows.append((logs(add_noise(picture, sigma, rng, grey=grey, blur=blur))[0], 1.0, told, 1.0))
        for row in rows:
            for place, value in zip((features, noisy, strength, weights), row, strict=True):
                place.append(value)
    x, y, sigma, w = (np.array(a) for a in (features, noisy, strength, weights))
    used = (y == 0) | (sigma >= 2.7)
    is_noisy = fit(x[used], y[used], w[used], logistic=True)
    told = (y == 1) & (sigma >= 2)
    how_noisy = fit(x[told], np.log(1.5 * sigma[told]), w[told], logistic=False)
    # Set so that one in two hundred clean training crops is taken for noisy.
    is_noisy[-1] -= np.quantile((x @ is_noisy)[w == 8], 0.995)
    for name, values in (("IS_NOISY", is_noisy), ("HOW_NOISY", how_noisy)):
        print(f"{name} = np.array([{', '.join(f'{v:.3f}' for v in values)}])")
    degradation.IS_NOISY, degradation.HOW_NOISY = is_noisy, how_noisy
    for name in args.check:
        pairs = list(benchmark_pairs(find(name), 4))
        for kind, index in (("reduced", 1), ("whole", 2)):
            pictures = [pair[index] for pair in pairs]
            line = [f"{name} {kind}: clean pictures called noisy {sum(degradation.noise(p)[0] > 0 for p in pictures)}"]
            for grey in (False, True):
                for s in (3, 5, 7, 10):
                    read = [
                        degradation.noise(add_noise(p, s, np.random.default_rng(s), grey=grey))[0] for p in pictures
                    ]
                    seen = [r for r in read if r]
                    line.append(f"{'grey' if grey else 'colour'} {s}: {len(seen)}, {np.median(seen or [0]):.1f}")
            print("; ".join(line), f"of {len(pictures)}", flush=True)


if __name__ == "__main__":
    main()
