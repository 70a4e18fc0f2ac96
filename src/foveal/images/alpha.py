"""Multiply colours by alpha (premultiply) and divide them again.

A network or a filter that mixes neighbours must see premultiplied colours, otherwise the invisible colours of
transparent pixels bleed into the visible ones as a dark or light halo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["flatten", "premultiply", "unpremultiply"]


def premultiply(pixels: NDArray[Any]) -> NDArray[Any]:
    """Multiply the colours by alpha.

    Integer results are rounded to nearest, and opaque pixels are unchanged. Integer pixels lose precision where alpha
    is low; convert to floating point first if the result is to be divided again.

    Args:
        pixels: pixels, (..., C) with alpha last; full-range uint8 or uint16, or floating point with alpha in [0, 1].

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: if the array has no alpha channel or another dtype.
    """
    top = _top(pixels)
    out = pixels.copy()
    if top == 1:
        out[..., :-1] *= pixels[..., -1:]
        return out
    wide = np.uint32 if pixels.dtype == np.uint8 else np.uint64
    alpha: NDArray[Any] = pixels[..., -1:].astype(wide)
    for channel in range(pixels.shape[-1] - 1):  # one channel at a time, to keep the wide copy small
        product: NDArray[Any] = pixels[..., channel : channel + 1].astype(wide) * alpha
        out[..., channel : channel + 1] = (product + top // 2) // top
    return out


def unpremultiply(pixels: NDArray[Any]) -> NDArray[Any]:
    """Divide the colours by alpha: the inverse of `premultiply`.

    Colours above alpha (a filter may overshoot) are clipped to the range for integers and left unchanged for floating
    point. Fully transparent pixels become zero. Opaque pixels are unchanged.

    Args:
        pixels: premultiplied pixels, (..., C) with alpha last; dtypes as in `premultiply`.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: if the array has no alpha channel or another dtype.
    """
    top = _top(pixels)
    out = pixels.copy()
    alpha = pixels[..., -1:]
    visible = alpha > 0
    if top == 1:
        out[..., :-1] = np.where(visible, pixels[..., :-1] / np.where(visible, alpha, 1), 0)
        return out
    wide = np.uint32 if pixels.dtype == np.uint8 else np.uint64
    divisor: NDArray[Any] = np.where(visible, alpha, 1).astype(wide)
    for channel in range(pixels.shape[-1] - 1):
        product: NDArray[Any] = pixels[..., channel : channel + 1].astype(wide) * top
        out[..., channel : channel + 1] = np.where(visible, np.minimum((product + divisor // 2) // divisor, top), 0)
    return out


def _top(pixels: NDArray[Any]) -> int:
    """The value of full opacity; also validates the array."""
    if pixels.ndim < 1 or pixels.shape[-1] not in (2, 4):
        raise ValueError(f"pixels must end in an axis of 2 or 4 channels, alpha last, got shape {pixels.shape}")
    if pixels.dtype in (np.uint8, np.uint16):
        return int(np.iinfo(pixels.dtype).max)
    if np.issubdtype(pixels.dtype, np.floating):
        return 1
    raise ValueError(f"pixels must be uint8, uint16 or floating point, got {pixels.dtype}")


def flatten(block: NDArray[Any], background: int | tuple[int, int, int] | None) -> NDArray[Any]:
    """Composite transparent pixels over a background.

    Args:
        block: rows, (n, W, C), uint8 or uint16, alpha last.
        background: grey level or colour, 0 to 255; white by default.

    Returns:
        (n, W, C − 1), of the same dtype.
    """
    top = int(np.iinfo(block.dtype).max)
    colours, alpha = block[..., :-1].astype(np.int64), block[..., -1:].astype(np.int64)
    below = np.asarray(background if background is not None else 255, np.int64) * (top // 255)
    if colours.shape[2] == 1 and below.size == 3:
        below = below.mean().round().astype(np.int64)
    mixed = (colours * alpha + below * (top - alpha) + top // 2) // top
    return np.asarray(mixed, block.dtype)
