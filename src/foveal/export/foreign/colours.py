"""Range and order of the colours that a network takes and gives, found by running it.

A smooth picture is given in each range (0 to 1, 0 to 255, −1 to 1) and order (RGB, BGR); the result, reduced by the
scale, is closest to the picture where range and order are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.pictures import smooth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.export.foreign.sizes import Run, Sizes

__all__ = ["ORDERS", "RANGES", "Colours", "find_colours"]

RANGES = {"0-1": (0.0, 1.0), "0-255": (0.0, 255.0), "-1-1": (-1.0, 1.0)}
ORDERS = ("rgb", "bgr")
# dB by which another range, and blue first on both sides, have to be closer than RGB in [0, 1]. In a wider range the
# same error counts less (6 dB less in one twice as wide), which is no sign that the range is right.
_CLOSER = {"0-1": 0.0, "-1-1": 8.0, "0-255": 14.0, "bgr": 6.0}
_CLOSE = 40.0  # dB from which closer means nothing
_SAME = 0.5  # dB between two of which the first is taken
_LIKE = 20.0  # dB from which a result resembles its picture


@dataclass(frozen=True)
class Colours:
    """Range and order of colours that a network takes and gives.

    Args:
        range_in: word of `RANGES` for the input.
        range_out: word of `RANGES` for the output.
        order_in: "rgb" or "bgr".
        order_out: "rgb" or "bgr".
        psnr: of the reduced result against the picture, in dB; None where nothing was measured.
    """

    range_in: str = "0-1"
    range_out: str = "0-1"
    order_in: str = "rgb"
    order_out: str = "rgb"
    psnr: float | None = None

    @property
    def usual(self) -> bool:
        """Whether the network takes and gives RGB in [0, 1]."""
        return (self.range_in, self.range_out, self.order_in, self.order_out) == ("0-1", "0-1", "rgb", "rgb")

    def encode(self, x: NDArray) -> NDArray:
        """RGB in [0, 1] to what the network takes.

        Args:
            x: pictures, (B, 3, H, W).

        Returns:
            The input.
        """
        low, high = RANGES[self.range_in]
        x = x if self.order_in == "rgb" else x[:, ::-1]
        return np.ascontiguousarray(low + (high - low) * x, np.float32)

    def decode(self, y: NDArray) -> NDArray:
        """What the network gives to RGB in [0, 1].

        Args:
            y: output, (B, 3, H, W).

        Returns:
            Pictures.
        """
        low, high = RANGES[self.range_out]
        y = y if self.order_out == "rgb" else y[:, ::-1]
        return (y - low) / (high - low)

    def around(self, run: Run) -> Run:
        """The network as foveal runs it.

        Args:
            run: network in its own colours.

        Returns:
            Network of RGB in [0, 1].
        """
        return run if self.usual else lambda x: self.decode(run(self.encode(x)))


def find_colours(run: Run, sizes: Sizes, name: str) -> Colours:
    """Range and order of colours.

    RGB in [0, 1] is taken unless another is clearly closer: a network without biases gives the same in every range, and
    most treat the three colours alike, so that a little closer says nothing.

    Args:
        run: network in its own colours.
        sizes: its sizes.
        name: name of the model, for messages.

    Returns:
        The closest.

    Raises:
        ForeignModelError: what comes out resembles the picture in none.
    """
    side, t, s = sizes.up(40 + 2 * sizes.trims), sizes.trims, sizes.scale
    x = smooth(side, side)
    edge = t + 4  # what a network makes of the edges says nothing
    kept = x[..., edge : side - edge, edge : side - edge]
    found = []
    for range_in, order_in in product(RANGES, ORDERS):
        try:
            y = run(Colours(range_in=range_in, order_in=order_in).encode(x))
        except Exception:  # noqa: S112 - one that raises for a range is not of that range
            continue
        inner = y[..., 4 * s : y.shape[2] - 4 * s, 4 * s : y.shape[3] - 4 * s]
        small = inner.reshape(1, 3, kept.shape[2], s, kept.shape[3], s).mean((3, 5), dtype=np.float64)
        for range_out, order_out in product(RANGES, ORDERS):
            colours = Colours(range_in, range_out, order_in, order_out)
            error = float(((np.clip(colours.decode(small), -1, 2) - kept) ** 2).mean())
            if np.isfinite(error):
                found.append((min(-10 * float(np.log10(error + 1e-12)), _CLOSE), colours))
    best = max((psnr for psnr, _ in found), default=-np.inf)
    if best < _LIKE:
        raise ForeignModelError(
            f"{name}: what it makes of a picture resembles it in no range or order of colours (closest: {best:.1f} "
            "dB); it is no model that enlarges or restores pictures, or say --range and --order if it changes colours"
        )
    scores = [psnr - _handicap(colours) for psnr, colours in found]
    psnr, colours = next(one for one, score in zip(found, scores, strict=True) if score >= max(scores) - _SAME)
    return Colours(colours.range_in, colours.range_out, colours.order_in, colours.order_out, psnr)


def _handicap(colours: Colours) -> float:
    both = colours.order_in == colours.order_out == "bgr"
    return max(_CLOSER[colours.range_in], _CLOSER[colours.range_out]) + (_CLOSER["bgr"] if both else 0)
