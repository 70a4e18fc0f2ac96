"""Spatial-Pipeline: classical steps for pictures of 8 bits: grey levels, contrast, sharpness, edges, lines, corners.

*Source*: N. I. S. Mohammad, "Hierarchical Spatial Algorithms for High-Resolution Image Quantization and Feature
Extraction", 2025 (arXiv:2510.08449). For grey g, (H, W), and colours x, (H, W, 3), in 0 to 255:

    quantise    V[number of thresholds T below g], eight values V
    equalise    255 (F(g) - F_min) / (n - F_min), F the cumulative histogram of n pixels; each colour, or luminance
                Y = 0.299 R + 0.587 G + 0.114 B alone, with Cr and Cb kept
    brighten    x · min(s, 255 / max x), which scales the value of HSV and keeps hue and saturation
    sharpen     x ∗ [0 -1 0; -1 5 -1; 0 -1 0]
    forward     noise(gamma(unsharp(x)));  backward  inverse gamma of a blurred x: steps of the other way in reverse
    edges       Canny;  line_angle  the strongest line by Hough;  corners  Harris;  window  the largest closed region

*Differs from the paper*: its "accuracy" of 76.10 and 74.80 % forward and backward is not defined, so none is claimed;
values of the bidirectional steps, of Canny and of Harris, which it does not print, are ours.
*Provenance*: written from the abstract and an account of the paper's thresholds; edges, lines, corners and morphology
are scikit-image's. It lies in `foveal.images` since arrays go in and come out: nothing here needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foveal._install import install_hint
from foveal.cases import Procedure
from foveal.errors import FovealError
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "MissingScikitImageError",
    "Spatial",
    "analyse",
    "backward",
    "brighten",
    "corners",
    "edges",
    "equalise",
    "equalise_colours",
    "equalise_luminance",
    "forward",
    "grey",
    "line_angle",
    "quantise",
    "sharpen",
    "window",
]

THRESHOLDS = (30, 60, 90, 120, 160, 190, 220)  # the paper's
VALUES = (10, 20, 50, 70, 100, 140, 180, 200)
RADIUS, AMOUNT, GAMMA, NOISE = 1.0, 1.0, 0.8, 4.0  # unsharp mask in pixels and share; exponent; levels


class MissingScikitImageError(FovealError, ImportError):
    """A step needs scikit-image, which is not installed."""


def _skimage(module: str) -> Any:
    """A module of scikit-image."""
    import importlib

    try:
        return importlib.import_module(f"skimage.{module}")
    except ImportError as error:
        raise MissingScikitImageError(
            f"edges, lines, corners and unsharp masking are scikit-image's; say {install_hint('classical')}"
        ) from error


def _checked(x: NDArray, axes: int) -> NDArray[np.uint8]:
    if x.dtype != np.uint8:
        raise TypeError(f"a picture must be uint8, 0 to 255, got {x.dtype}; scale and round it first")
    if x.ndim != axes or (axes == 3 and x.shape[2] != 3) or not x.size:
        wanted = "(H, W, 3)" if axes == 3 else "(H, W)"
        raise ValueError(f"the picture must be {wanted}, at least 1×1, got {x.shape}")
    return x


def grey(x: NDArray) -> NDArray[np.uint8]:
    """Luminance Y = 0.299 R + 0.587 G + 0.114 B, in integers as OpenCV rounds them.

    Args:
        x: picture, (H, W, 3) uint8.

    Returns:
        Luminance, (H, W) uint8.
    """
    red, green, blue = (_checked(x, 3)[..., i].astype(np.int32) for i in range(3))
    return ((4899 * red + 9617 * green + 1868 * blue + 8192) >> 14).astype(np.uint8)


def quantise(x: NDArray, thresholds: Sequence[int] = THRESHOLDS, values: Sequence[int] = VALUES) -> NDArray[np.uint8]:
    """Replace grey levels by few: values[i] above threshold i - 1 and up to threshold i.

    Args:
        x: grey, (H, W) uint8.
        thresholds: ascending grey levels; `range(31, 255, 32)` with values `range(0, 256, 32)` floors to steps of 32.
        values: grey levels to put out, one more than thresholds.

    Returns:
        Grey, (H, W) uint8.

    Raises:
        ValueError: thresholds that do not ascend, or not one value more than thresholds.
    """
    if len(values) != len(thresholds) + 1 or list(thresholds) != sorted(set(thresholds)):
        raise ValueError(f"thresholds must ascend and values be one more, got {tuple(thresholds)} and {tuple(values)}")
    table = np.array(values, np.uint8)[np.searchsorted(thresholds, np.arange(256))]
    return table[_checked(x, 2)]


def equalise(x: NDArray) -> NDArray[np.uint8]:
    """Spread grey levels so that their cumulative histogram is a straight line.

    Args:
        x: grey, (H, W) uint8.

    Returns:
        Grey, (H, W) uint8; a picture of one level is returned as it is.
    """
    counts = np.bincount(_checked(x, 2).ravel(), minlength=256).cumsum()
    least = counts[counts > 0][0]
    if least == x.size:
        return x.copy()
    table = np.rint(255 * (counts - least).clip(0) / (x.size - least))
    return table.astype(np.uint8)[x]


def equalise_colours(x: NDArray) -> NDArray[np.uint8]:
    """Equalise red, green and blue separately; colours shift.

    Args:
        x: picture, (H, W, 3) uint8.

    Returns:
        Picture, (H, W, 3) uint8.
    """
    return np.stack([equalise(channel) for channel in np.moveaxis(_checked(x, 3), 2, 0)], 2)


def equalise_luminance(x: NDArray) -> NDArray[np.uint8]:
    """Equalise luminance and keep Cr = 0.713 (R - Y) and Cb = 0.564 (B - Y).

    Args:
        x: picture, (H, W, 3) uint8.

    Returns:
        Picture, (H, W, 3) uint8.
    """
    y = grey(x).astype(np.float64)
    red, blue = (np.rint(share * (x[..., i] - y) + 128).clip(0, 255) - 128 for share, i in ((0.713, 0), (0.564, 2)))
    y = equalise(grey(x)).astype(np.float64)
    colours = np.stack([y + 1.403 * red, y - 0.714 * red - 0.344 * blue, y + 1.773 * blue], 2)
    return np.rint(colours).clip(0, 255).astype(np.uint8)


def brighten(x: NDArray, scale: float) -> NDArray[np.uint8]:
    """Scale the value of HSV, at most to 255.

    Args:
        x: picture, (H, W, 3) uint8.
        scale: s, at least 0.

    Returns:
        Picture, (H, W, 3) uint8.

    Raises:
        ValueError: a negative scale.
    """
    if scale < 0:
        raise ValueError(f"scale must be at least 0, got {scale}")
    value = _checked(x, 3).max(2, keepdims=True).astype(np.float64)
    return np.rint(x * np.minimum(scale, 255 / np.maximum(value, 1))).astype(np.uint8)


def sharpen(x: NDArray) -> NDArray[np.uint8]:
    """Five times a pixel less its four neighbours, clipped; borders are mirrored about the edge pixel.

    Args:
        x: picture, (H, W, 3) uint8, H and W at least 2.

    Returns:
        Picture, (H, W, 3) uint8.
    """
    p = np.pad(_checked(x, 3).astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    around = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
    return (5 * p[1:-1, 1:-1] - around).clip(0, 255).astype(np.uint8)


def _rounded(x: NDArray) -> NDArray[np.uint8]:
    return np.rint(255 * x).clip(0, 255).astype(np.uint8)


def forward(x: NDArray, *, noise: float = NOISE, seed: int = 0) -> NDArray[np.uint8]:
    """Unsharp mask, gamma, noise.

    Args:
        x: picture, (H, W, 3) uint8.
        noise: standard deviation of Gaussian noise, in levels.
        seed: seed of the noise.

    Returns:
        Picture, (H, W, 3) uint8.
    """
    sharp = _skimage("filters").unsharp_mask(_checked(x, 3) / 255, RADIUS, AMOUNT, channel_axis=2)
    curved = _skimage("exposure").adjust_gamma(sharp, GAMMA)
    return _rounded(curved + np.random.default_rng(seed).normal(0, noise / 255, x.shape))


def backward(x: NDArray) -> NDArray[np.uint8]:
    """The way back: blur against the noise and the unsharp mask, then the inverse gamma.

    Args:
        x: picture, (H, W, 3) uint8.

    Returns:
        Picture, (H, W, 3) uint8.
    """
    blurred = _skimage("filters").gaussian(_checked(x, 3) / 255, RADIUS / 2, channel_axis=2)
    return _rounded(_skimage("exposure").adjust_gamma(blurred, 1 / GAMMA))


def edges(x: NDArray, *, sigma: float = 1.5, low: float = 0.2, high: float = 0.5) -> NDArray[np.bool_]:
    """Canny's edges.

    Args:
        x: grey, (H, W) uint8.
        sigma: standard deviation of the blur, pixels.
        low: Sobel gradient that continues an edge; 4 is a step from black to white.
        high: Sobel gradient that begins one.

    Returns:
        Mask, (H, W).
    """
    return _skimage("feature").canny(_checked(x, 2) / 255, sigma, low, high)


def line_angle(mask: NDArray, *, step: float = 0.1) -> float:
    """Angle of the strongest straight line, by the Hough transform.

    Args:
        mask: edges, (H, W) bool.
        step: resolution, degrees.

    Returns:
        Degrees from the horizontal, counter-clockwise as one sees it, in (-90, 90].

    Raises:
        ValueError: no edge at all.
    """
    if not np.any(mask):
        raise ValueError("the mask has no edge, so no line; lower the thresholds of edges")
    votes, normals, _ = _skimage("transform").hough_line(mask, np.deg2rad(np.arange(-90, 90, step)))
    row, first = np.unravel_index(votes.argmax(), votes.shape)
    last = first  # a short line gets the same votes at neighbouring angles: the middle of them
    while last + 1 < len(normals) and votes[row, last + 1] == votes[row, first]:
        last += 1
    angle = 90 - float(np.rad2deg(normals[first] + normals[last]) / 2)
    return angle if angle <= 90 else angle - 180


def corners(x: NDArray, *, count: int = 50, sigma: float = 1.5) -> NDArray[np.intp]:
    """Harris' corners, the strongest first.

    Args:
        x: grey, (H, W) uint8.
        count: largest number of corners.
        sigma: standard deviation of the window, pixels.

    Returns:
        Rows and columns, (n, 2).
    """
    feature = _skimage("feature")
    strength = feature.corner_harris(_checked(x, 2) / 255, sigma=sigma)
    return feature.corner_peaks(strength, min_distance=5, threshold_rel=0.01, num_peaks=count)


def window(mask: NDArray, *, radius: int = 3) -> tuple[int, int, int, int]:
    """Bounding box of the largest region after gaps are closed.

    Args:
        mask: edges, (H, W) bool.
        radius: radius of the square that closes gaps, pixels.

    Returns:
        Top, left, bottom, right; the last two are one past the end.

    Raises:
        ValueError: no edge at all.
    """
    if not np.any(mask):
        raise ValueError("the mask has no edge, so no window; lower the thresholds of edges")
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    measure = _skimage("measure")
    regions = measure.regionprops(measure.label(_skimage("morphology").closing(mask, square)))
    return max(regions, key=lambda region: region.area_bbox).bbox


class Spatial(NamedTuple):
    """What the pipeline makes of a picture.

    Args:
        levels: quantised grey, (H, W) uint8.
        enhanced: luminance equalised and sharpened, (H, W, 3) uint8.
        edges: mask, (H, W).
        angle: angle of the strongest line, degrees; None without edges.
        corners: rows and columns, (n, 2).
        window: box of the largest region; None without edges.
    """

    levels: NDArray[np.uint8]
    enhanced: NDArray[np.uint8]
    edges: NDArray[np.bool_]
    angle: float | None
    corners: NDArray[np.intp]
    window: tuple[int, int, int, int] | None


def analyse(x: NDArray) -> Spatial:
    """Run the pipeline.

    Args:
        x: picture, (H, W, 3) uint8.

    Returns:
        Levels, enhanced picture and features.
    """
    luminance = grey(x)
    mask = edges(luminance)
    found = bool(mask.any())
    return Spatial(
        quantise(luminance),
        sharpen(equalise_luminance(x)),
        mask,
        line_angle(mask) if found else None,
        corners(luminance),
        window(mask) if found else None,
    )


def _drawn(seed: int) -> NDArray[np.uint8]:
    picture = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    return sharpen(equalise_luminance(brighten(picture, 1.2)))


METHOD = Method(
    id=308,
    name="Spatial-Pipeline",
    kind="application",
    summary="Grey levels, equalisation, sharpening, edges, lines, corners and windows of a picture, by fixed rules.",
    paper=Paper(
        "Hierarchical Spatial Algorithms for High-Resolution Image Quantization and Feature Extraction",
        "N. I. S. Mohammad",
        2025,
        "arXiv:2510.08449",
    ),
    cases={
        "colours": Procedure(
            _drawn,
            empty=lambda: equalise_luminance(np.zeros((0, 0, 3), np.uint8)),
            refuses="the picture must be (H, W, 3), at least 1×1, got (0, 0, 3)",
        )
    },
)
