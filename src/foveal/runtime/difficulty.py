"""How much a larger super-resolution network is expected to better a smaller one, place by place. NumPy only.

*Source*: X. Kong et al., "ClassSR: a general framework to accelerate super-resolution networks by data characteristic",
CVPR 2021, section 3, observes that what a patch needs grows with its detail. Here no network looks: of the luminance Y
of the source, in levels of 0 to 255, and a cell of n pixels,

    detail = mean( Y_xx² + Y_yy² + 2·Y_xy² ),    gain = n · (detail + 0.05)^0.79.

*Fit*: the exponent is that of a quasi-Poisson regression of the squared error that `balanced_x4` saves over `fast_x4`,
in cells of 16×16 pixels of 28 photographs and wallpapers of the training set (`foveal data`), each reduced four times;
pictures weigh alike. On these, on four photographs and on 20 pictures of Urban100 that no network was trained on, the
order of cells by second derivatives loses less than that by the gradient, the variance, or the coherence of the
structure tensor; the difference between `fast` and bicubic orders them as well, after running `fast`. Regressions of
several of them together were no better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EXPONENT", "LEAST", "expected_gain"]

EXPONENT, LEAST = 0.79, 0.05
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
_ROWS = 1 << 10  # of the source that are looked at together


def _detail(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared second derivatives, (h + 2, w + 2) to (h, w)."""
    centre = 2 * values[1:-1, 1:-1]
    across = values[1:-1, :-2] + values[1:-1, 2:] - centre
    down = values[:-2, 1:-1] + values[2:, 1:-1] - centre
    both = values[:-2, :-2] + values[2:, 2:] - values[:-2, 2:] - values[2:, :-2]
    across *= across
    down *= down
    both *= both
    both *= np.float32(1 / 8)  # two times the square of a quarter
    across += down
    across += both
    return across


def _luminance(image: NDArray, *, alpha: bool) -> NDArray[np.float32]:
    """(H, W, C) to (H, W), 0 to 255; transparent pixels are black."""
    white = np.float32(1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
    colours = image[..., :-1] if image.shape[2] in (2, 4) else image
    found = colours[..., 0].astype(np.float32) if colours.shape[2] == 1 else colours.astype(np.float32) @ LUMA
    found *= np.float32(255) / white
    return np.where(image[..., -1] > 0, found, np.float32(0)) if alpha else found


def expected_gain(image: NDArray, cell: tuple[int, int], *, alpha: bool = False) -> NDArray[np.float64]:
    """Squared error that the larger network is expected to save in each cell, in a unit of its own.

    Args:
        image: picture, (H, W, C), uint8, uint16 or floating point in [0, 1].
        cell: height and width of a cell, in pixels.
        alpha: the last channel is alpha.

    Returns:
        (rows, columns) of cells, the last of which may be smaller; above 0.
    """
    height, width = image.shape[:2]
    firsts = np.arange(0, width, cell[1])
    step = max(1, _ROWS // cell[0]) * cell[0]
    found = []
    for top in range(0, height, step):
        first, last = max(0, top - 1), min(height, top + step + 1)
        values = _luminance(image[first:last], alpha=alpha)
        above, below = int(first == top), int(last == min(height, top + step))
        detail = _detail(np.pad(values, ((above, below), (1, 1)), mode="edge"))
        rows = np.arange(0, len(detail), cell[0])
        sums = np.add.reduceat(np.add.reduceat(detail, firsts, axis=1), rows, axis=0, dtype=np.float64)
        counts = np.diff(np.append(rows, len(detail)))[:, None] * np.diff(np.append(firsts, width))
        found.append(counts * (sums / counts + LEAST) ** EXPONENT)
    return np.concatenate(found)
