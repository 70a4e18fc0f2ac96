"""Synthetic pictures that a network is measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["blocks", "noise", "smooth"]


def noise(height: int, width: int, seed: int = 0) -> NDArray:
    """A picture of coloured texture on smooth ground.

    Args:
        height: rows.
        width: columns.
        seed: seed of what is drawn.

    Returns:
        Values in [0, 1], (1, 3, H, W).
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(rows / rng.uniform(2, 20) + columns / rng.uniform(2, 20) + rng.uniform(0, 6)) for _ in range(3)]
    x = 0.5 + 0.25 * np.stack(waves) + rng.uniform(-0.2, 0.2, (3, height, width))
    return np.clip(x, 0, 1).astype(np.float32)[None]


def blocks(height: int, width: int, seed: int = 0) -> NDArray:
    """A picture of flat coloured rectangles with hard edges.

    Args:
        height: rows.
        width: columns.
        seed: seed of what is drawn.

    Returns:
        Values in [0, 1], (1, 3, H, W).
    """
    rng = np.random.default_rng(seed)
    x = np.full((1, 3, height, width), 0.5, np.float32)
    for _ in range(height * width // 40):
        top, left = rng.integers(height), rng.integers(width)
        x[..., top : top + rng.integers(1, 12), left : left + rng.integers(1, 12)] = rng.random((3, 1, 1))
    return x


def smooth(height: int, width: int) -> NDArray:
    """A picture of soft coloured blobs.

    Args:
        height: rows.
        width: columns.

    Returns:
        Values in [0.1, 0.9], (1, 3, H, W).
    """
    corners = np.random.default_rng(1).uniform(0.1, 0.9, (3, 5, 5))

    def weights(length: int) -> NDArray:
        place = np.linspace(0, 4, length)[:, None] - np.arange(5)
        return np.clip(1 - np.abs(place), 0, 1)

    return np.einsum("cij,hi,wj->chw", corners, weights(height), weights(width)).astype(np.float32)[None]
