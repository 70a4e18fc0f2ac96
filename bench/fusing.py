"""Fusion of `foveal restore --with` on RoadScene's real pairs, beside the classical rules.

    python bench/fusing.py                        all 221 pairs
    python bench/fusing.py --every 14             some of them
    python bench/fusing.py --save results/fusing  also Markdown and JSON

Scores of `foveal.measure.fusion` after rounding to 8 bits, against the visible picture's luminance and infrared; means
over the pairs. Rules on luminance: mean, maximum, Laplacian pyramid (P. J. Burt and R. J. Kolczynski, 1993), guided
filter (S. Li et al., 2013), and two of wavelets (H. Li, B. S. Manjunath and S. K. Mitra, "Multisensor Image Fusion
Using the Wavelet Transform", 1995): details of larger absolute value and the mean of the coarsest level, of four levels
of Haar's transform, decimated (dwt), and without decimation with the kernel (1, 2, 1) / 4 (swt).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from foveal.measure import fusion
from foveal.measure.benchmarks import find
from foveal.runtime import fuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

LEVELS = 4
OURS = "foveal restore --with"
SCORES = ("q_abf", "ms_ssim")


def _haar(x: Plane) -> tuple[Plane, list[Plane]]:
    """Means of 2×2 pixels and their three differences; an odd last row or column is repeated before."""
    x = np.pad(x, [(0, size % 2) for size in x.shape], mode="edge")
    a, b, c, d = x[::2, ::2], x[::2, 1::2], x[1::2, ::2], x[1::2, 1::2]
    return (a + b + c + d) / 4, [(a - b + c - d) / 4, (a + b - c - d) / 4, (a - b - c + d) / 4]


def _unhaar(mean: Plane, details: list[Plane], shape: tuple[int, ...]) -> Plane:
    across, down, both = details
    out = np.empty((2 * mean.shape[0], 2 * mean.shape[1]), np.float32)
    out[::2, ::2], out[::2, 1::2] = mean + across + down + both, mean - across + down - both
    out[1::2, ::2], out[1::2, 1::2] = mean + across - down - both, mean - across - down + both
    return out[: shape[0], : shape[1]]


def dwt(a: Plane, b: Plane, levels: int = LEVELS) -> Plane:
    """Haar coefficients of larger absolute value, on the mean of the coarsest level.

    Args:
        a: (H, W).
        b: (H, W).
        levels: of the transform.

    Returns:
        (H, W).
    """
    if not levels:
        return (a + b) / 2
    (mean_a, details_a), (mean_b, details_b) = _haar(a), _haar(b)
    details = [np.where(abs(x) >= abs(y), x, y) for x, y in zip(details_a, details_b, strict=True)]
    return _unhaar(dwt(mean_a, mean_b, levels - 1), details, a.shape)


def swt(a: Plane, b: Plane) -> Plane:
    """Details of larger absolute value of the undecimated transform, by its à trous form.

    Args:
        a: (H, W).
        b: (H, W).

    Returns:
        (H, W).
    """
    out, (x, y) = np.zeros_like(a), (a, b)
    for level in range(LEVELS):
        step = 2**level
        smooth = []
        for one in (x, y):
            padded = np.pad(one, [(step, step), (step, step)], mode="symmetric")
            rows = (padded[: -2 * step] + 2 * padded[step:-step] + padded[2 * step :]) / 4
            smooth.append((rows[:, : -2 * step] + 2 * rows[:, step:-step] + rows[:, 2 * step :]) / 4)
        details = x - smooth[0], y - smooth[1]
        out += np.where(abs(details[0]) >= abs(details[1]), *details)
        x, y = smooth
    return out + (x + y) / 2


RIVALS: dict[str, Callable[[Plane, Plane], Plane]] = {
    "mean": fuse.average, "maximum": fuse.maximum, "Laplacian pyramid": fuse.laplacian, "guided filter": fuse.guided,
    "dwt": dwt, "swt": swt,
}  # fmt: skip


def fused_by(rule: Callable[[Plane, Plane], Plane], visible: NDArray, infrared: NDArray) -> NDArray:
    """A pair by one rule.

    Args:
        rule: of luminance.
        visible: (H, W, 3), uint8.
        infrared: (H, W), uint8.

    Returns:
        Luminance, (H, W), 0 to 255.
    """
    luma = visible.astype(np.float32) @ fuse.LUMA / 255
    return np.rint(rule(luma, infrared.astype(np.float32) / 255).clip(0, 1) * 255)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    folder = find("roadscene")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *RIVALS)}
    spent, pixels = 0.0, 0
    for path in sorted((folder / "cropinfrared").glob("*.jpg"))[:: options.every]:
        with Image.open(folder / "crop_LR_visible" / path.name) as one, Image.open(path) as other:
            visible, infrared = np.asarray(one.convert("RGB")), np.asarray(other.convert("L"))
        start = time.process_time()
        ours = fuse.fuse(visible, infrared)
        spent += time.process_time() - start
        pixels += infrared.size
        found[OURS].append(fusion.scores(ours, visible, infrared))
        for name, rule in RIVALS.items():
            found[name].append(fusion.scores(fused_by(rule, visible, infrared), visible, infrared))
    means = {name: {s: float(np.mean([one[s] for one in rows])) for s in rows[0]} for name, rows in found.items()}
    lines = ["| rule | Qabf | MS-SSIM | entropy | mutual information |", "|---|---|---|---|---|"]
    for name, row in means.items():
        lines.append(
            f"| {name} | {row['q_abf']:.4f} | {row['ms_ssim']:.4f} | {row['entropy']:.3f} "
            f"| {row['mutual_information']:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    for score in SCORES:
        best = max((row[score], name) for name, row in means.items() if name != OURS)
        print(f"{score}: {means[OURS][score] - best[0]:+.4f} against the best, {best[1]}")
    print(f"{len(found[OURS])} pairs, {spent / (pixels / 1e6):.2f} s a megapixel of processor time")
    if options.save:
        options.save.with_suffix(".md").write_text(text, encoding="utf-8")
        options.save.with_suffix(".json").write_text(json.dumps(means, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
