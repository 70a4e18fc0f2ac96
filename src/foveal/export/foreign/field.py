"""How far a network looks, and whether it looks in windows, found by running it.

- **period**: a shifted picture gives the shifted result only for shifts by the window of a windowed network; tiles
  start at multiples of it;
- **field**: how much an output pixel changes with all that lies more than d pixels away. The picture is cut off there
  as a tile is, or has another content there, on each of the four sides. The margin is the d from which the change stays
  below a limit; a network without such a d depends on the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from foveal.export.foreign.pictures import blocks, noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.export.foreign.sizes import Run, Sizes
    from foveal.runtime.card import Tiling

__all__ = ["EXACT", "FINE", "Field", "find_field", "find_period"]

FINE = 1e-4  # a fortieth of a level of 8 bits; an engine's own rounding stays below
EXACT = 1e-3  # a quarter of a level of 8 bits
_SHIFTS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
_NEAR, _FAR = 32, 128  # half lengths of the pictures that the field is measured on
_HEIGHT = 32  # of those pictures
_WIDEST = 64  # widest overlap of a network that depends on the whole picture
_SLOW = 50  # times the limit: less than that, just within the margin, is no sharp end of a field


@dataclass(frozen=True)
class Field:
    """How far a network looks.

    Args:
        tiling: "exact" if what lies beyond the margin changes no pixel by more than `EXACT`, else "overlap".
        margin: margin of a tile in input pixels; with "overlap" half the width of the overlap.
        beyond: largest change of an output value by what lies beyond the margin, for values in [0, 1].
    """

    tiling: Tiling
    margin: int
    beyond: float


def find_period(run: Run, sizes: Sizes) -> int:
    """Shift of a picture from which on its result is the shifted one.

    Args:
        run: network of RGB in [0, 1].
        sizes: its sizes.

    Returns:
        A multiple of `sizes.multiple`; that itself where no shift is better.
    """
    m, s = sizes.multiple, sizes.scale
    side = sizes.up(64 + 2 * sizes.trims)
    height = sizes.up(32 + 2 * sizes.trims)
    wide = noise(height, side + 64 * m)
    still = run(np.ascontiguousarray(wide[..., :side])).copy()

    def apart(shift: int) -> float:
        moved = run(np.ascontiguousarray(wide[..., shift : shift + side]))
        kept = still[..., s * shift :]
        same = moved[..., : kept.shape[3]]
        edge = kept.shape[3] // 4
        inner = slice(edge, kept.shape[3] - edge)
        return float(np.abs(kept[..., inner] - same[..., inner]).max())

    first = apart(m)
    if first <= FINE:
        return m
    for factor in _SHIFTS:
        if factor * m <= side // 2 and apart(factor * m) <= max(FINE, first / 20):
            return factor * m
    return m


def find_field(run: Run, sizes: Sizes) -> Field:
    """How far a network looks.

    Args:
        run: network of RGB in [0, 1].
        sizes: its sizes, with the period as multiple.

    Returns:
        The field. A network that trims has the field that it trims, if that is all it sees.
    """
    margin, beyond = _from_which(_changes(run, sizes, _NEAR), FINE, reserve=True)
    if margin <= _NEAR * 3 // 4:
        return Field("exact", margin, beyond)
    # The field does not end well within: look farther, and be content with what no picture of 8 bits shows.
    changes = _changes(run, sizes, _FAR)
    for limit, widest in ((FINE, _WIDEST), (EXACT, _FAR * 3 // 4)):
        margin, beyond = _from_which(changes, limit, reserve=limit == FINE)
        if margin <= widest:
            return Field("exact", margin, beyond)
    margin = next((d for d in range(8, _WIDEST) if changes[d:].max() <= 4 * EXACT), _WIDEST)
    return Field("overlap", margin, float(changes[margin:].max()))


def _from_which(changes: NDArray, limit: float, *, reserve: bool = False) -> tuple[int, float]:
    """The distance from which on changes stay within a limit, and the largest of them.

    Where they sink slowly below it, other pictures may show more; a reserve of an eighth is for those.
    """
    above = np.nonzero(changes > limit)[0]
    margin = int(above[-1]) + 1 if len(above) else 0
    if reserve and margin and changes[margin - 1] < _SLOW * limit:
        margin = min(margin + margin // 8 + 1, len(changes))
    return margin, float(changes[margin:].max(initial=0.0))


def _changes(run: Run, sizes: Sizes, reach: int) -> NDArray:
    """Largest change of an output pixel by all that lies more than d pixels from it, d = 0 … reach - 1."""
    t = sizes.trims
    half, height = sizes.up(reach + 2 * t), sizes.up(_HEIGHT + 2 * t)
    texture, shapes = noise(height, 2 * half), blocks(height, 2 * half)
    others = (1 - 0.8 * texture[..., ::-1] ** 2).astype(np.float32), (1 - shapes[..., ::-1] ** 2)
    changes = np.zeros(reach)
    contents = ((texture, others[0]), (shapes, others[1]))
    for axis, flip, (picture, other) in product((2, 3), (False, True), contents):

        def view(x: NDArray, axis: int = axis, flip: bool = flip) -> NDArray:
            x = x[..., ::-1] if flip else x
            return np.ascontiguousarray(x if axis == 3 else x.swapaxes(2, 3))

        def seen(x: NDArray, axis: int = axis, flip: bool = flip) -> NDArray:
            y = run(view(x))
            y = y if axis == 3 else y.swapaxes(2, 3)
            return (y[..., ::-1] if flip else y).copy()

        # What stands left of the middle is looked at; what stands right of it is replaced, or cut off.
        whole = seen(picture)
        replaced = seen(np.concatenate([picture[..., :half], other[..., half:]], axis=3))
        cut = seen(picture[..., :half])
        for changed, missing in ((replaced, 0), (cut, t)):
            left = slice(0, sizes.scale * (half - t - missing))
            apart = np.abs(changed[..., left] - whole[..., left]).max((0, 1, 2))
            # By input column, from the middle outwards; the first is `missing` pixels from the cut.
            apart = apart.reshape(-1, sizes.scale).max(1)[::-1][: reach - missing]
            into = changes[missing : missing + len(apart)]
            np.maximum(into, apart, out=into)
    return changes
