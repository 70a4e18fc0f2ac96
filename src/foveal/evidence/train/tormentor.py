"""Evidence for TorMentor: fields beside the loop, their spectrum, and pictures, masks and points under one seed."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.record import bound, equal, faster
from foveal.train.tormentor import PlasmaAugment, plasma, plasma_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SIDE, FIELDS = 257, 32  # of the spectra
LOWEST, HIGHEST = 4, 32  # periods a side between which a slope is fitted
TIMED = 513
ROUGHNESS = (0.4, 0.5, 0.6)
AUGMENT = PlasmaAugment(brightness=0, contrast=0)
SHAPE, SEEDS, POINTS, CELL = (2, 60, 83), 10, 100, 8
EDGE = 2  # pixels at the border, beyond which pictures continue and show no origins


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Noise of one seed.

    Args:
        *shape: (B, H, W).
        seed: its seed.

    Returns:
        Values in [0, 1], float64.
    """
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(roughness: float) -> float:
    """Exponent of power against frequency, over fields of one roughness.

    Args:
        roughness: ρ.

    Returns:
        Slope of a line through the logarithms of the power of rings of frequencies.
    """
    side = SIDE - 1  # a period of the transform
    field = plasma(noise(FIELDS, SIDE, SIDE), roughness=roughness, levels=int(math.log2(side)))[:, :-1, :-1]
    window = torch.hann_window(side, dtype=field.dtype)
    windowed = (field - field.mean((1, 2), keepdim=True)) * window[:, None] * window
    power = torch.fft.fft2(windowed).abs().square().mean(0)
    along = torch.fft.fftfreq(side, dtype=field.dtype) * side
    rings = torch.hypot(along[:, None], along).round()
    frequencies = range(LOWEST, HIGHEST + 1)
    rows = [math.log(power[rings == f].mean()) for f in frequencies]
    return float(np.polyfit(np.log(frequencies), rows, 1)[0])


def _off(roughness: float) -> float:
    return abs(slope(roughness) + 2 - 2 * math.log2(roughness))


def looped(values: list[list[float]], roughness: float = 0.5) -> list[list[float]]:
    """Diamond-square as it is usually written: a loop over plain numbers.

    Args:
        values: noise in [0, 1], 2^L + 1 rows of as many numbers; becomes the field.
        roughness: ρ.

    Returns:
        The field, the same lists.
    """
    side, step, amount = len(values), len(values) - 1, roughness
    while step > 1:
        half, rest = step // 2, 1 - amount
        for i in range(half, side, step):
            for j in range(half, side, step):
                total = values[i - half][j - half] + values[i - half][j + half]
                total += values[i + half][j - half] + values[i + half][j + half]
                values[i][j] = rest * total / 4 + amount * values[i][j]
        for i in range(0, side, half):
            for j in range(half if i % step == 0 else 0, side, step):
                total, number = 0.0, 0
                for a, b in ((i - half, j), (i + half, j), (i, j - half), (i, j + half)):
                    if 0 <= a < side and 0 <= b < side:
                        total, number = total + values[a][b], number + 1
                values[i][j] = rest * total / number + amount * values[i][j]
        step, amount = half, amount * roughness
    return values


def _convolved() -> Callable[[], object]:
    given, levels = noise(1, TIMED, TIMED).float(), int(math.log2(TIMED - 1))
    return lambda: plasma(given, levels=levels)


def _loop() -> Callable[[], object]:
    given = noise(1, TIMED, TIMED)[0].tolist()
    return lambda: looped([row[:] for row in given])


def _ramp() -> Tensor:
    """A picture whose two channels say where a pixel is, x / W and y / H."""
    rows, columns = (torch.arange(side, dtype=torch.float64) / side for side in SHAPE[1:])
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy")).expand(SHAPE[0], -1, -1, -1)


def _origins(seed: int) -> Tensor:
    """Where the pixels of a warped picture come from, as it shows itself: x and y in pixels, (B, 2, H, W)."""
    return AUGMENT.image(_ramp(), seed=seed) * torch.tensor(SHAPE[:0:-1])[:, None, None]


def points_off(*, other: int = 0) -> float:
    """How far points are from what pictures show where they went.

    Args:
        other: added to the points' seed.

    Returns:
        Largest difference in x or y between a point and the origin that is shown there, pixels.
    """
    worst, last = 0.0, torch.tensor([SHAPE[2] - 1, SHAPE[1] - 1])
    for seed in range(SEEDS):
        points = EDGE + noise(SHAPE[0], POINTS, 2, seed=seed) * (last - 2 * EDGE)
        moved = AUGMENT.points(points, SHAPE[1:], seed=seed + other)
        at = (2 * moved / last - 1)[:, :, None]
        shown = torch.nn.functional.grid_sample(_origins(seed), at, align_corners=True)[..., 0].mT
        inside = ((moved >= 0) & (moved <= last)).all(-1)
        worst = max(worst, float((shown - points)[inside].abs().max()))
    return worst


def labels_off(*, other: int = 0) -> float:
    """How many pixels of a mask, whose labels are cells of a grid, are not those that pictures show there.

    Args:
        other: added to the masks' seed.

    Returns:
        Percent.
    """
    rows, columns = (torch.arange(side) // CELL for side in SHAPE[1:])
    wrong = 0.0
    for seed in range(SEEDS):
        mask = AUGMENT.mask((100 * rows[:, None] + columns).expand(SHAPE), seed=seed + other)
        across, down = (_origins(seed) + 0.5).floor().long().unbind(1)
        wrong += float((mask != 100 * (down // CELL) + across // CELL).double().mean()) / SEEDS
    return 100 * wrong


CLAIMS = (
    equal(
        "The convolutional field is that of a loop over pixels, with the same noise.",
        ours=lambda: plasma(noise(2, 33, 49), roughness=0.6, levels=4),
        theirs=lambda: plasma_reference(noise(2, 33, 49), roughness=0.6, levels=4),
        tolerance=1e-12,
        clause=1,
    ),
    *(
        bound(
            f"At roughness {rho} power falls with frequency by the power {2 * math.log2(rho) - 2:.2f}, within 0.25.",
            paper="plasma fractals",
            value=partial(_off, rho),
            at_most=0.25,
            unit="off",
            clause=2,
        )
        for rho in ROUGHNESS
    ),
    faster(
        f"A field of {TIMED}×{TIMED} takes a tenth of the time of the loop over plain numbers.",
        paper="runs on GPUs",
        ours=_convolved,
        theirs=_loop,
        at_least=10.0,
        clause=3,
    ),
    bound(
        "Points are where pictures of their seed show them, within 0.01 pixel.",
        paper="deterministic for a seed",
        value=points_off,
        at_most=0.01,
        unit="pixels at worst",
        clause=4,
    ),
    bound(
        "Masks have the labels that pictures of their seed show, but for ties in rounding.",
        paper="deterministic for a seed",
        value=labels_off,
        at_most=0.1,
        unit="% of pixels",
        clause=4,
    ),
)
