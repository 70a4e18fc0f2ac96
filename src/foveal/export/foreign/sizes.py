"""Sizes that a network takes and gives, found by running it.

The network is a function from (B, 3, H, W) to (B, 3, H', W') in NumPy, whatever computes it. H' = s·H − 2·s·t for every
H that is a multiple of m and at least a minimum; s is the scale and t what an unpadded network trims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.pictures import noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Run", "Sizes", "find_sizes", "takes_batches"]

# (B, 3, H, W) float32 to (B, 3, H', W').
Run = Callable[["NDArray"], "NDArray"]

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 40, 7, 14, 28, 56)
_GROWING = ((0, 1), (1, 0), (2, 2))  # steps by which the sides are larger than the first
_BASES = (32, 64, 128, 256)


@dataclass(frozen=True)
class Sizes:
    """Sizes that a network takes and gives.

    Args:
        scale: s.
        trims: t, input pixels that the network takes off each side; 0 if it pads.
        multiple: sides of the input must be a multiple of this.
        minimum: smallest side found to work.
    """

    scale: int
    trims: int
    multiple: int
    minimum: int

    def up(self, side: int) -> int:
        """A side that the network takes.

        Args:
            side: least side in input pixels.

        Returns:
            The next one that is a multiple and not below the minimum.
        """
        return -(-max(side, self.minimum) // self.multiple) * self.multiple


def find_sizes(run: Run, name: str, *, multiple: int = 1, minimum: int = 1) -> Sizes:
    """Sizes that a network takes, and what it makes of them.

    Args:
        run: network.
        name: name of the model, for messages.
        multiple: multiple that it is known to want.
        minimum: minimum that it is known to want.

    Returns:
        The sizes.

    Raises:
        ForeignModelError: no size works, the result is no RGB picture, or the scale is no whole number.
    """
    first = ""
    for base, step in product(_BASES, _MULTIPLES):
        step *= multiple  # noqa: PLW2901 - in units of what is known
        a = -(-max(base, minimum) // step) * step
        if a > max(2 * base, minimum + step):
            continue
        try:
            wide, tall, large = (np.array(run(noise(a + i * step, a + j * step))) for i, j in _GROWING)
        except ForeignModelError:
            raise
        except Exception as error:  # whatever a network raises for a size it does not take
            first = first or str(error).strip().partition("\n")[0][:200]
            continue
        _check_output(wide, name)
        grown = [(large.shape[2] - tall.shape[2]) / step, (large.shape[3] - wide.shape[3]) / step]
        scales = [(tall.shape[2] - wide.shape[2]) / step, (wide.shape[3] - tall.shape[3]) / step]
        if grown != scales:  # padded inside to a larger multiple
            continue
        if scales[0] != scales[1] or scales[0] != int(scales[0]) or scales[0] < 1:
            made = scales[0] if scales[0] == scales[1] else f"{scales[0]:g} by {scales[1]:g}"
            raise ForeignModelError(
                f"{name}: foveal runs networks that enlarge both sides by the same whole number, this one enlarges by "
                f"{made if isinstance(made, str) else f'{made:g}'}; take a model of another scale"
            )
        scale = int(scales[0])
        lost = scale * a - wide.shape[2]
        if lost < 0 or lost % (2 * scale) or scale * a - tall.shape[3] != lost:
            raise ForeignModelError(
                f"{name}: makes {wide.shape[2]}×{wide.shape[3]} of {a}×{a + step}, which is not {scale} times as large "
                "nor trimmed evenly; foveal cannot place its tiles"
            )
        return Sizes(scale, lost // (2 * scale), step, _least(run, step, scale, lost, a, minimum))
    raise ForeignModelError(
        f"{name}: took no picture of {_BASES[0]} to {_BASES[-1]} pixels a side"
        + (f" ({first})" if first else "")
        + "; export it with free height and width"
    )


def _check_output(y: NDArray, name: str) -> None:
    if y.ndim != 4:
        shape = "×".join(map(str, y.shape))
        raise ForeignModelError(
            f"{name}: gives {shape}, not a picture; only models from picture to picture are imported"
        )
    if y.shape[1] != 3:
        raise ForeignModelError(
            f"{name}: gives {y.shape[1]} channels, foveal runs models of RGB pictures (3); take one trained on colour"
        )
    if not np.isfinite(y).all():
        raise ForeignModelError(
            f"{name}: gives values that are no numbers; the file is damaged or not a model of pictures"
        )


def _least(run: Run, multiple: int, scale: int, lost: int, works: int, said: int) -> int:
    """The smallest side, doubling from the multiple, that gives a whole and finite result."""
    side = -(-max(multiple, said, lost // scale + 1) // multiple) * multiple
    while side < works:
        try:
            y = run(noise(side, side))
        except Exception:  # noqa: S110 - too small
            pass
        else:
            if y.shape[2:] == (scale * side - lost,) * 2 and np.isfinite(y).all():
                return side
        side *= 2
    return works


def takes_batches(run: Run, sizes: Sizes) -> bool:
    """Whether several pictures at once give what each gives alone.

    Args:
        run: network.
        sizes: its sizes.

    Returns:
        Whether they do.
    """
    side = sizes.up(24 + 2 * sizes.trims)
    pair = np.concatenate([noise(side, side), noise(side, side, seed=5)])
    try:
        together = run(pair)
    except Exception:
        return False
    alone = np.concatenate([run(pair[:1]).copy(), run(pair[1:]).copy()])
    return together.shape == alone.shape and bool(np.abs(together - alone).max() <= 1e-3 * np.abs(alone).max())
