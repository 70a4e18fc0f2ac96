"""Results held within the local range of their source, whatever the engine. NumPy only.

Networks overshoot at edges, and ring where the source is flat. Here every value of the result stays within what the
source has within two pixels, widened by a share of that range,

    least - share · (greatest - least)  ≤  result  ≤  greatest + share · (greatest - least),

so where a 5×5 neighbourhood has one value, the result has it too. On photographs a share of a half costs nothing that
can be measured (`docs/clean.md`). In graphics (screenshots, line art, sprites), whose edges end in plateaus of one
value, results overshoot a plateau by no more than bicubic interpolation does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GRAPHIC_SHARE", "REACH", "hold", "is_graphic", "keep_grey"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
REACH = 2  # pixels: neighbourhoods are 5×5
GRAPHIC_SHARE = 0.07  # how far bicubic interpolation overshoots a step, as a share of its height
_STROKE_SHARE = 0.12  # the same beside a thin stroke
_STEP = 24 / 255  # least range of a neighbourhood that has an edge
_EQUAL = 0.45  # share of equal neighbours from which on a neighbourhood with an edge is drawn
_LEAST_GRAPHIC = 0.25  # share of drawn edges among a picture's edges from which on it is looked at closely
_PLATEAU = 3  # pixels of a neighbourhood that have its extreme value
_LOOK = 96  # side of the regions in which a large picture is looked at, and how many there are on a side
_LOOKS = 3


def _extremes(values: NDArray, radius: int, best: np.ufunc) -> NDArray:
    """Least or greatest value within `radius` pixels, (h + 2·radius, w + 2·radius, C) to (h, w, C)."""
    for axis in (0, 1):
        length = values.shape[axis] - 2 * radius
        parts = [values[(slice(None),) * axis + (slice(k, k + length),)] for k in range(2 * radius + 1)]
        made = best(parts[0], parts[1])
        for part in parts[2:]:
            best(made, part, out=made)
        values = made
    return values


def _equal_neighbours(around: NDArray) -> NDArray[np.float32]:
    """Share of neighbours that are equal within each 5×5, (h + 4, w + 4, C) to (h, w)."""
    total: NDArray = np.zeros((around.shape[0] - 2 * REACH, around.shape[1] - 2 * REACH), np.uint8)
    pairs = 0
    for axis in (0, 1):
        first = (slice(None),) * axis + (slice(None, -1),)
        second = (slice(None),) * axis + (slice(1, None),)
        equal = (around[first] == around[second]).all(2).view(np.uint8)
        sizes = [4 if k == axis else 5 for k in (0, 1)]
        for k, size in enumerate(sizes):
            length = total.shape[k]
            parts = [equal[(slice(None),) * k + (slice(i, i + length),)] for i in range(size)]
            equal = np.add.reduce(parts, dtype=np.uint8)
        total += equal
        pairs += sizes[0] * sizes[1]
    return np.multiply(total, np.float32(1 / pairs), dtype=np.float32)


def _white(dtype: np.dtype) -> float:
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def _drawn(around: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where a neighbourhood has an edge, and where such an edge is drawn, (h, w) each."""
    range_ = _extremes(around, REACH, np.maximum) - _extremes(around, REACH, np.minimum)
    edges = range_.max(2) >= _STEP * _white(around.dtype)
    return edges, edges & (_equal_neighbours(around) >= _EQUAL)


def is_graphic(image: NDArray) -> bool:
    """Whether a picture, or a good part of it, is drawn: a screenshot, line art, a sprite.

    Args:
        image: (H, W, C), uint8, uint16 or floating point in [0, 1].

    Returns:
        True where many of its edges lie between pixels of equal neighbours.
    """
    height, width = image.shape[:2]
    if min(height, width) <= 2 * REACH:
        return False
    edges = drawn = 0
    for top in _starts(height):
        for left in _starts(width):
            found = _drawn(image[top : top + _LOOK, left : left + _LOOK])
            edges += int(found[0].sum())
            drawn += int(found[1].sum())
    return drawn > _LEAST_GRAPHIC * edges


def _starts(length: int) -> list[int]:
    if length <= _LOOKS * _LOOK:
        return list(range(0, length - 2 * REACH, _LOOK - 2 * REACH))
    return [(length - _LOOK) * k // (_LOOKS - 1) for k in range(_LOOKS)]


def _limits(around: NDArray, share: float, graphic: bool) -> tuple[NDArray, NDArray]:
    """Least and greatest values allowed, (h, w, C) of the dtype given."""
    low, high = _extremes(around, REACH, np.minimum), _extremes(around, REACH, np.maximum)
    white = _white(around.dtype)
    if around.dtype == np.uint8 and share == 0.5 and not graphic:
        more = (high - low) >> 1  # without leaving bytes: this is every photograph's way
    else:
        more = _share_of(high - low, share)
    below = above = more
    if graphic:
        little, some = (np.minimum(more, _share_of(high - low, s)) for s in (GRAPHIC_SHARE, _STROKE_SHARE))
        below, above = (np.where(_plateau(around, limit), little, some) for limit in (low, high))
    if around.dtype.kind == "f":
        return low - below, high + above
    return low - np.minimum(below, low), high + np.minimum(above, around.dtype.type(white) - high)


def _share_of(range_: NDArray, share: float) -> NDArray:
    return (range_.astype(np.float32) * np.float32(share)).astype(range_.dtype)


def _plateau(around: NDArray, limit: NDArray) -> NDArray[np.bool_]:
    """Where several pixels of a neighbourhood have its extreme value: in photographs hardly ever at an edge."""
    height, width = limit.shape[:2]
    count: NDArray = np.zeros(limit.shape, np.uint8)
    for y, x in np.ndindex(2 * REACH + 1, 2 * REACH + 1):
        count += around[y : y + height, x : x + width] == limit
    return count >= _PLATEAU


def hold(made: NDArray, around: NDArray, scale: int, share: float, *, graphic: bool = False) -> None:
    """Hold a result within the local range of its source.

    Args:
        made: result, (s·h, s·w, C); changed. Each row of pixels must be contiguous where it is of bytes.
        around: its source with two pixels more on each side, (h + 4, w + 4, C), in the same units.
        scale: s.
        share: of the local range that it is widened by.
        graphic: whether less is allowed where the source is drawn.
    """
    low, high = _limits(around, share, graphic)
    height, width, channels = low.shape
    rows = made.reshape(height, scale, width * scale, channels) if made.flags.c_contiguous else None
    for limit, best in ((low, np.maximum), (high, np.minimum)):
        wide = limit.repeat(scale, axis=1)
        if rows is not None:
            best(rows, wide[:, None], out=rows)
        else:
            for k in range(scale):
                best(made[k::scale], wide, out=made[k::scale])


def keep_grey(made: NDArray, around: NDArray, scale: int) -> None:
    """Take the colour out of a result where its source has none, which a network that cleans colour may add.

    Args:
        made: result, (s·h, s·w, 3); changed where the 5×5 neighbourhood of the source is grey.
        around: its source with two pixels more on each side, (h + 4, w + 4, 3).
        scale: s.
    """
    grey = (around == around[..., :1]).all(2, keepdims=True)
    if not grey.any():
        return
    inside = _extremes(grey, REACH, np.minimum)[..., 0]
    if not inside.any():
        return
    luma = made.astype(np.float32) @ LUMA
    if made.dtype.kind != "f":
        luma += np.float32(0.5)
    where = inside.repeat(scale, axis=0).repeat(scale, axis=1)
    np.copyto(made, luma.astype(made.dtype)[..., None], where=where[..., None])
