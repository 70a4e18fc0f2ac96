"""A picture exposed some stops more or less, after it was taken: light multiplied, highlights rolled off. NumPy only.

With sRGB's curve undone (IEC 61966-2-1) and g = 2^stops ≥ 1, light x in [0, 1] becomes

    y = g x                                                    up to the knee, g x ≤ t
    y = t + (1 - t) v (1 + v / w²) / (1 + v),  v = (g x - t) / (1 - t),  w = (g - t) / (1 - t)    above

which goes on with the same slope and keeps white white. Fewer stops are its inverse, so that +1 and -1 leave the
picture as it was but for rounding. Each colour goes this way by itself, so that highlights turn to white as they do on
film. *Source*: E. Reinhard et al., "Photographic Tone Reproduction for Digital Images", SIGGRAPH 2002, equation 4.
*Differs from the paper*: it starts at the knee instead of at black. *Provenance*: written from the formula.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KNEE", "MOST_STOPS", "exposed"]

KNEE = 0.8  # t, of linear light
MOST_STOPS = 5.0


def _to_linear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x <= 0.04045, x / 12.92, ((np.maximum(x, 0.04045) + 0.055) / 1.055) ** 2.4)


def _to_srgb(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)


def _curve(values: NDArray[np.float64], stops: float) -> NDArray[np.float64]:
    """SRGB values in [0, 1] to the same."""
    x, gain, t = _to_linear(values), 2.0 ** abs(stops), KNEE
    white = (gain - t) / (1 - t)
    if stops >= 0:
        v = np.maximum(gain * x - t, 0) / (1 - t)
        y = np.where(gain * x <= t, gain * x, t + (1 - t) * v * (1 + v / white**2) / (1 + v))
    else:
        s = np.maximum(x - t, 0) / (1 - t)
        v = white**2 / 2 * (s - 1 + np.sqrt((1 - s) ** 2 + 4 * s / white**2))
        y = np.where(x <= t, x, t + (1 - t) * v) / gain
    return _to_srgb(y)


def exposed(pixels: NDArray, stops: float) -> NDArray:
    """Colours as if the picture had been exposed otherwise.

    Args:
        pixels: any shape, colours without alpha, uint8, uint16 or floats in [0, 1].
        stops: powers of two of light, -5 to 5.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: too many stops.
    """
    if not abs(stops) <= MOST_STOPS:
        raise ValueError(f"stops must be from {-MOST_STOPS:g} to {MOST_STOPS:g}, got {stops:g}; expose in two steps")
    if pixels.dtype.kind == "f":
        return _curve(pixels.clip(0, 1).astype(np.float64), stops).astype(pixels.dtype)
    top = np.iinfo(pixels.dtype).max
    table = np.rint(top * _curve(np.arange(top + 1) / top, stops)).astype(pixels.dtype)
    return np.asarray(table[pixels])
