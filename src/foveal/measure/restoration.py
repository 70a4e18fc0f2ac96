"""Quality of restored pictures: damaged on purpose, repaired, and compared with what they were. NumPy only.

PSNR is that of red, green and blue together, as papers on noise give it; SSIM that of luminance
(`foveal.measure.quality`). No border is left out, because nothing is enlarged.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.measure.quality import benchmark_pairs, psnr, ssim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["RestorationScore", "colour_psnr", "evaluate_restorer"]

MOST = 100.0  # dB, of equal pictures, so that a mean stays a number
SAME = 0.005  # dB by which a picture must lose to count as worse


@dataclass(frozen=True)
class RestorationScore:
    """Means over a folder of pictures.

    Args:
        name: name of the set.
        damage: what was done to the pictures.
        pictures: number of pictures.
        damaged_psnr: PSNR of the damaged pictures, dB.
        psnr: PSNR of the restored ones, dB.
        damaged_ssim: SSIM of the damaged pictures, at most 1.
        ssim: SSIM of the restored ones.
        worse: number of pictures whose PSNR fell.
        seconds_per_megapixel: of restoring, reading and writing of files left out.
    """

    name: str
    damage: str
    pictures: int
    damaged_psnr: float
    psnr: float
    damaged_ssim: float
    ssim: float
    worse: int
    seconds_per_megapixel: float

    @property
    def gain(self) -> float:
        """How much restoring gave, dB."""
        return self.psnr - self.damaged_psnr

    def to_json(self) -> dict[str, Any]:
        """The score as plain data.

        Returns:
            The fields, and the gain.
        """
        return {**asdict(self), "gain": self.gain}


def colour_psnr(a: NDArray, b: NDArray) -> float:
    """Peak signal-to-noise ratio over all channels.

    Args:
        a: picture in 0 to 255, (H, W, C).
        b: picture of the same shape.

    Returns:
        dB, at most 100.

    Raises:
        ValueError: different sizes.
    """
    flat = [np.asarray(one).reshape(one.shape[0], -1) for one in (a, b)]  # (H, W·C), which is taken for luminance
    return min(MOST, psnr(*flat, shave=0))


def evaluate_restorer(
    restore: Callable[[Any], Any],
    folder: Path,
    damage: Callable[[NDArray[np.uint8], int], Any],
    *,
    name: str = "",
    damaged_by: str = "",
    limit: int | None = None,
) -> RestorationScore:
    """Damage the pictures of a folder, restore them, and compare both with the originals.

    Args:
        restore: function from a damaged picture to a restored one of its kind and size.
        folder: folder of pictures, or of a benchmark, whose originals are taken.
        damage: function of a picture, (H, W, 3), uint8, and a seed, which is the picture's number; it returns an array
            or a PIL image.
        name: name of the set; "" takes the folder's.
        damaged_by: name of the damage.
        limit: largest number of pictures, in the order of their names.

    Returns:
        The means.

    Raises:
        ValueError: no such folder, no pictures in it, or a restored picture of another size.
    """
    rows: list[tuple[float, float, float, float]] = []
    spent, pixels = 0.0, 0
    for seed, (_, _, high) in enumerate(benchmark_pairs(folder, 1, limit=limit)):
        given = damage(high, seed)
        if not rows:
            restore(given)  # which opens an engine, and may measure some
        begun = time.perf_counter()
        made = np.asarray(restore(given))
        spent += time.perf_counter() - begun
        pixels += high.shape[0] * high.shape[1]
        before = np.asarray(given)
        rows.append(
            (colour_psnr(before, high), colour_psnr(made, high), ssim(before, high, shave=0), ssim(made, high, shave=0))
        )
    table = np.array(rows)
    before_psnr, after_psnr, before_ssim, after_ssim = (float(value) for value in table.mean(axis=0))
    return RestorationScore(
        name=name or folder.name,
        damage=damaged_by,
        pictures=len(rows),
        damaged_psnr=before_psnr,
        psnr=after_psnr,
        damaged_ssim=before_ssim,
        ssim=after_ssim,
        worse=int((table[:, 1] < table[:, 0] - SAME).sum()),
        seconds_per_megapixel=spent / (pixels / 1e6),
    )
