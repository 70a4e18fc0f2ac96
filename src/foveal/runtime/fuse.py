"""Several pictures of one scene made one, without a network: visible light with infrared, exposures with each other.

| function | inputs | source |
|---|---|---|
| `fuse` | a visible picture and an infrared one | guided filtering, or one of the plain rules below |
| `merge` | pictures of different exposures | T. Mertens, J. Kautz and F. Van Reeth, "Exposure Fusion", 2007 |

Rules for `fuse`, on luminance:

- average, maximum: of the two values of a pixel
- laplacian: of each level of two pyramids the detail of larger absolute value; the mean of the coarsest levels (P. J.
  Burt and R. J. Kolczynski, "Enhanced Image Capture Through Fusion", ICCV 1993)
- guided: a base and details with weights of their own, from where each picture has more contrast, made smooth along
  the edges of that picture (S. Li, X. Kang and J. Hu, "Image Fusion with Guided Filtering", IEEE TIP 22(7), 2013; the
  filter of K. He et al., "Guided Image Filtering", ECCV 2010)

Pictures are aligned already and of one size. NumPy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import FovealError
from foveal.images import pyramid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

__all__ = ["RULES", "FuseError", "average", "fuse", "guided", "laplacian", "maximum", "merge"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
BASE = 15  # radius of the mean that is the base of a picture, pixels
BASE_FILTER, DETAIL_FILTER = (45, 0.3), (7, 1e-6)  # radius and ε of the filters of the weights
SALIENCY = (5, 5.0)  # radius and standard deviation of the blur of contrast
WELL_EXPOSED = 0.2  # standard deviation of the weight around middle grey


class FuseError(FovealError, ValueError):
    """Pictures that cannot be made one; the text says what to do."""


def average(a: Plane, b: Plane) -> Plane:
    """Mean of two planes.

    Args:
        a: (H, W) in [0, 1].
        b: (H, W) in [0, 1].

    Returns:
        (H, W).
    """
    return ((a + b) / 2).astype(np.float32)


def maximum(a: Plane, b: Plane) -> Plane:
    """Larger of two values at each pixel.

    Args:
        a: (H, W) in [0, 1].
        b: (H, W) in [0, 1].

    Returns:
        (H, W).
    """
    return np.maximum(a, b)


def laplacian(a: Plane, b: Plane) -> Plane:
    """Details of larger absolute value, level by level, on the mean of the coarsest level.

    Args:
        a: (H, W) in [0, 1].
        b: (H, W) in [0, 1].

    Returns:
        (H, W), not clipped.
    """
    levels = pyramid.depth(*a.shape)
    *details_a, base_a = pyramid.laplacian(a, levels)
    *details_b, base_b = pyramid.laplacian(b, levels)
    details = [np.where(abs(x) >= abs(y), x, y) for x, y in zip(details_a, details_b, strict=True)]
    return pyramid.collapse([*details, (base_a + base_b) / 2])


def _sums(x: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Sums over 2r + 1 rows, fewer at the edges."""
    total = np.concatenate([np.zeros_like(x[:1]), x.cumsum(0)])
    i = np.arange(len(x))
    sums: NDArray[np.float64] = total[np.minimum(i + radius + 1, len(x))] - total[np.maximum(i - radius, 0)]
    return sums


def _mean(x: NDArray, radius: int) -> NDArray[np.float64]:
    """Mean over a square of 2r + 1 pixels a side, or what of it lies inside; in doubles, for large sums."""
    count = [
        np.minimum(np.arange(n) + radius + 1, n) - np.maximum(np.arange(n) - radius, 0)
        for n in (x.shape[0], x.shape[1])
    ]
    sums = _sums(_sums(x.astype(np.float64), radius).T, radius).T
    return sums / np.outer(*count)


def _guided_filter(guide: Plane, x: NDArray, radius: int, eps: float) -> NDArray[np.float64]:
    """He's filter: x as a local linear function of the guide."""
    mean_guide, mean_x = _mean(guide, radius), _mean(x, radius)
    squares, products = np.square(guide, dtype=np.float64), np.multiply(guide, x, dtype=np.float64)
    slope = (_mean(products, radius) - mean_guide * mean_x) / (_mean(squares, radius) - mean_guide**2 + eps)
    return _mean(slope, radius) * guide + _mean(mean_x - slope * mean_guide, radius)


def _contrast(x: Plane) -> Plane:
    """Absolute value of the discrete Laplacian; edge samples are repeated."""
    p = np.pad(x, 1, mode="edge")
    return abs(p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * x)


def _blurred(x: Plane) -> Plane:
    radius, sigma = SALIENCY
    weights = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * sigma**2)).astype(np.float32)
    weights /= weights.sum()
    for _ in range(2):
        p = np.pad(x, [(radius, radius), (0, 0)], mode="edge")
        x = np.add.reduce([w * p[k : k + len(x)] for k, w in enumerate(weights)]).T
    return x


def guided(a: Plane, b: Plane) -> Plane:
    """Base and details of the picture that has more contrast there, with weights that follow its edges.

    Args:
        a: (H, W) in [0, 1].
        b: (H, W) in [0, 1].

    Returns:
        (H, W), not clipped.
    """
    chosen = _blurred(_contrast(a)) >= _blurred(_contrast(b))
    bases = [_mean(x, BASE) for x in (a, b)]
    out = np.zeros(a.shape)
    for (radius, eps), parts in ((BASE_FILTER, bases), (DETAIL_FILTER, [a - bases[0], b - bases[1]])):
        weights = [
            np.clip(_guided_filter(x, w, radius, eps), 0, None) + 1e-9
            for x, w in ((a, chosen), (b, ~chosen))
        ]  # fmt: skip
        out += (weights[0] * parts[0] + weights[1] * parts[1]) / (weights[0] + weights[1])
    return out.astype(np.float32)


RULES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "average": average, "maximum": maximum, "laplacian": laplacian, "guided": guided,
}  # fmt: skip


def _unit(picture: NDArray, name: str) -> NDArray[np.float32]:
    """Values in [0, 1], (H, W, C)."""
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (1, 2, 3, 4)):
        raise FuseError(
            f"{name} must be (H, W) or (H, W, C) with 1 to 4 channels, got shape {picture.shape}; reshape it"
        )
    x = picture if picture.ndim == 3 else picture[..., None]
    if picture.dtype in (np.uint8, np.uint16):
        return x.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    if picture.dtype.kind == "f":
        return x.astype(np.float32)
    raise FuseError(f"{name} must be uint8, uint16 or floating point in [0, 1], got {picture.dtype}; convert it")


def _put(colours: NDArray, picture: NDArray) -> NDArray:
    """A copy of a picture with other colours, given as (H, W, 1 or 3) in [0, 1]; alpha stays."""
    out = picture.copy() if picture.ndim == 3 else picture[..., None].copy()
    x = colours.clip(0, 1)
    if picture.dtype.kind != "f":
        x = np.rint(x * np.iinfo(picture.dtype).max)
    out[..., : x.shape[2]] = x.astype(picture.dtype)
    return out.reshape(picture.shape)


def _colours(x: NDArray[np.float32]) -> int:
    """Number of channels without alpha."""
    return 3 if x.shape[2] >= 3 else 1


def _luma(x: NDArray[np.float32]) -> Plane:
    return x[..., :3] @ LUMA if x.shape[2] >= 3 else x[..., 0]


def fuse(visible: NDArray, infrared: NDArray, *, rule: str = "laplacian") -> NDArray:
    """One picture with the texture of visible light and the warm bodies of infrared.

    Only luminance is fused: what it changes by is added to each colour, so that hue stays. Alpha of the visible picture
    is kept, alpha of the infrared one ignored.

    Args:
        visible: (H, W) or (H, W, C), grey, colour, with or without alpha; uint8, uint16 or floating point in [0, 1].
        infrared: the same scene, aligned, with the same H and W; any of these dtypes; colours count by luminance.
        rule: "average", "maximum", "laplacian" or "guided", see the head of this file.

    Returns:
        The fused picture in the shape and dtype of `visible`.

    Raises:
        FuseError: different sizes, an unknown rule, or an array that is no picture.
    """
    if rule not in RULES:
        raise FuseError(f"the rule must be one of {', '.join(RULES)}, got {rule!r}; pass one of these")
    x, y = _unit(visible, "the visible picture"), _unit(infrared, "the infrared picture")
    if x.shape[:2] != y.shape[:2]:
        raise FuseError(
            f"both pictures must have one size, got {x.shape[1]}×{x.shape[0]} visible and {y.shape[1]}×{y.shape[0]} "
            "infrared; align and resize the infrared one"
        )
    luma = _luma(x)
    return _put(x[..., : _colours(x)] + (RULES[rule](luma, _luma(y)) - luma)[..., None], visible)


def _quality(x: NDArray[np.float32]) -> Plane:
    """Mertens' weight of each pixel: contrast, saturation and exposure near middle grey, multiplied."""
    colours = x[..., : _colours(x)]
    weight = _contrast(_luma(x)) * np.exp(-np.square(colours - 0.5) / (2 * WELL_EXPOSED**2)).prod(-1)
    if colours.shape[2] == 3:
        weight = weight * colours.std(-1)
    return weight + np.float32(1e-12)


def merge(pictures: Sequence[NDArray]) -> NDArray:
    """One well exposed picture of several exposures of one scene.

    Each pixel weighs as much as it has contrast, saturation and a value near middle grey; the pictures' Laplacian
    pyramids are averaged with the Gaussian pyramids of these weights. It needs no exposure times, and moving things are
    not recognised.

    Args:
        pictures: at least two, aligned, of one shape and dtype: (H, W) or (H, W, C), grey or colour, with or without
            alpha; uint8, uint16 or floating point in [0, 1].

    Returns:
        The merged picture in their shape and dtype; alpha is that of the first.

    Raises:
        FuseError: fewer than two pictures, different shapes or dtypes, or an array that is no picture.
    """
    if len(pictures) < 2:
        raise FuseError(f"merging takes at least two pictures, got {len(pictures)}; pass further exposures")
    first = pictures[0]
    for number, other in enumerate(pictures[1:], 2):
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise FuseError(
                f"all pictures must be like the first, {first.shape} {first.dtype}, got {other.shape} {other.dtype} as "
                f"number {number}; convert or resize it"
            )
    units = [_unit(picture, f"picture {number}") for number, picture in enumerate(pictures, 1)]
    levels, colours = pyramid.depth(*first.shape[:2]), _colours(units[0])
    weights = [_quality(x) for x in units]
    total = np.sum(weights, axis=0)
    blended: list[NDArray] = []
    for x, weight in zip(units, weights, strict=True):
        masks = pyramid.gaussian((weight / total)[..., None], levels)
        parts = [m * d for m, d in zip(masks, pyramid.laplacian(x[..., :colours], levels), strict=True)]
        blended = [a + b for a, b in zip(blended, parts, strict=True)] if blended else parts
    return _put(pyramid.collapse(blended), first)
