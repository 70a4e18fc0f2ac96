"""Evidence for Spatial-Pipeline: every step against OpenCV on scikit-image's bundled photographs, and drawn lines."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.images import spatial_pipeline as steps
from foveal.record import bound, equal

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
BRIGHTER = 1.3
SIGMA, LOW, HIGH = 1.5, 0.2, 0.5


def _photographs() -> list[NDArray[np.uint8]]:
    import skimage.data

    return [getattr(skimage.data, name)() for name in PHOTOGRAPHS]


def _greys() -> list[Any]:
    """Luminance by OpenCV."""
    import cv2

    return [cv2.cvtColor(x, cv2.COLOR_RGB2YCrCb)[..., 0] for x in _photographs()]


def _levels(theirs: bool) -> NDArray[np.uint8]:
    import cv2

    table = np.array([[steps.VALUES[sum(level > t for t in steps.THRESHOLDS)] for level in range(256)]], np.uint8)
    found = [cv2.LUT(x, table) if theirs else steps.quantise(x) for x in _greys()]
    return np.concatenate([x.ravel() for x in found])


def _floored(theirs: bool) -> NDArray[np.uint8]:
    found = [x // 32 * 32 if theirs else steps.quantise(x, range(31, 255, 32), range(0, 256, 32)) for x in _greys()]
    return np.concatenate([x.ravel() for x in found])


def _their_luminance(x: NDArray) -> NDArray:
    import cv2

    y = cv2.cvtColor(x, cv2.COLOR_RGB2YCrCb)
    y[..., 0] = cv2.equalizeHist(y[..., 0])
    return cv2.cvtColor(y, cv2.COLOR_YCrCb2RGB)


def _their_colours(x: NDArray) -> NDArray:
    import cv2

    return np.stack([cv2.equalizeHist(np.ascontiguousarray(x[..., i])) for i in range(3)], 2)


def _their_value(x: NDArray) -> NDArray:
    from skimage.color import hsv2rgb, rgb2hsv

    hsv = rgb2hsv(x)
    hsv[..., 2] = np.minimum(BRIGHTER * hsv[..., 2], 1)
    return np.rint(255 * hsv2rgb(hsv))


def _their_sharpening(x: NDArray) -> NDArray:
    import cv2

    return cv2.filter2D(x, -1, np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32))


def _their_forward(x: NDArray) -> NDArray:
    import cv2

    x = x.astype(np.float32) / 255
    blurred = cv2.GaussianBlur(x, (9, 9), steps.RADIUS, borderType=cv2.BORDER_REFLECT)
    return np.rint(255 * np.clip(x + steps.AMOUNT * (x - blurred), 0, 1) ** steps.GAMMA)


def _their_backward(x: NDArray) -> NDArray:
    import cv2

    blurred = cv2.GaussianBlur(x.astype(np.float32) / 255, (5, 5), steps.RADIUS / 2, borderType=cv2.BORDER_REPLICATE)
    return np.rint(255 * blurred ** (1 / steps.GAMMA))


def _furthest(ours: Callable[[Any], NDArray], theirs: Callable[[Any], NDArray]) -> float:
    """Largest difference over the photographs, in grey levels."""
    return max(float(np.abs(ours(x).astype(np.float64) - theirs(x)).max()) for x in _photographs())


def _their_edges(x: NDArray) -> NDArray[np.bool_]:
    """Canny by OpenCV on its own Gaussian and Sobel filters; nothing at the border, as in scikit-image."""
    import cv2

    blurred = cv2.GaussianBlur(x.astype(np.float32) / 255, (13, 13), SIGMA, borderType=cv2.BORDER_REPLICATE)
    x_slope, y_slope = (
        np.rint(cv2.Sobel(blurred, cv2.CV_32F, *way, scale=8000)).astype(np.int16) for way in ((1, 0), (0, 1))
    )
    found = cv2.Canny(x_slope, y_slope, 8000 * LOW, 8000 * HIGH, L2gradient=True) > 0
    inside = np.zeros_like(found)
    inside[1:-1, 1:-1] = found[1:-1, 1:-1]
    return inside


def _agreeing() -> float:
    """Least share, percent, of one's edges that have an edge of the other within a pixel."""
    import cv2

    shares = []
    for x in _greys():
        pair = steps.edges(x, sigma=SIGMA, low=LOW, high=HIGH), _their_edges(x)
        for one, other in (pair, pair[::-1]):
            near = cv2.dilate(other.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            shares.append(100 * float((one & near).sum() / one.sum()))
    return min(shares)


def _votes() -> float:
    """Least votes, percent of OpenCV's strongest line, of the line at our angle, counted by plain distances."""
    import cv2

    shares = []
    for x in _greys():
        mask = steps.edges(x, sigma=SIGMA, low=LOW, high=HIGH)
        rows, columns = np.nonzero(mask)
        lines: Any = cv2.HoughLines(mask.astype(np.uint8), 1, np.deg2rad(0.1), 20)
        counts = []
        for normal in (np.deg2rad(90 - steps.line_angle(mask)), float(lines[0, 0, 1])):
            offsets = np.rint(columns * np.cos(normal) + rows * np.sin(normal)).astype(int)
            counts.append(np.bincount(offsets - offsets.min()).max())
        shares.append(100 * counts[0] / counts[1])
    return min(shares)


def _cornered(theirs: bool) -> NDArray[np.float64]:
    """Harris' response at our corners, over its largest; OpenCV's from its own filters."""
    import cv2
    from skimage.feature import corner_harris

    found = []
    for x in _greys():
        where = steps.corners(x, count=20)
        where = where[(where >= 12).all(1) & (where < np.array(x.shape) - 12).all(1)]
        if theirs:
            slope_x, slope_y = (cv2.Sobel(x.astype(np.float32) / 255, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))
            a, b, c = (
                cv2.GaussianBlur(product, (13, 13), 1.5)
                for product in (slope_x * slope_x, slope_x * slope_y, slope_y * slope_y)
            )
            strength = a * c - b * b - 0.05 * (a + c) ** 2
        else:
            strength = corner_harris(x / 255, sigma=1.5)
        found.append(strength[tuple(where.T)] / strength[12:-12, 12:-12].max())
    return np.concatenate(found)


def _boxes(theirs: bool) -> NDArray[np.int64]:
    import cv2

    found = []
    for x in _greys():
        mask = steps.edges(x, sigma=SIGMA, low=LOW, high=HIGH)
        if not theirs:
            found.append(steps.window(mask))
            continue
        closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
        boxes = cv2.connectedComponentsWithStats(closed, connectivity=8)[2][1:, :4]
        left, top, width, height = max(boxes.tolist(), key=lambda box: box[2] * box[3])
        found.append((top, left, top + height, left + width))
    return np.array(found)


def _line(angle: float, size: int = 201) -> NDArray[np.uint8]:
    """A white line 3 pixels wide, smooth at its edges, that misses the middle by 7.3 pixels."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    turned = np.deg2rad(angle)
    distance = np.abs(columns * np.sin(turned) + rows * np.cos(turned) - 7.3)
    return np.rint(255 * np.clip(2 - distance, 0, 1)).astype(np.uint8)


def _error() -> float:
    """Largest error over lines at 40 random angles, the paper's 51.5, and the axes, degrees."""
    angles = [*np.random.default_rng(0).uniform(-90, 90, 40), 51.5, 0.0, 90.0, 45.0]
    return max(abs((steps.line_angle(steps.edges(_line(angle))) - angle + 90) % 180 - 90) for angle in angles)


def _within(says: str, ours: Callable[[Any], NDArray], theirs: Callable[[Any], NDArray], levels: float) -> Any:
    return bound(
        says, paper="deterministic", value=partial(_furthest, ours, theirs), at_most=levels, unit="levels", clause=1
    )


CLAIMS = (
    equal(
        "Quantised levels are OpenCV's, by a table.",
        ours=partial(_levels, False),
        theirs=partial(_levels, True),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "With steps of 32 the levels are floored.",
        ours=partial(_floored, False),
        theirs=partial(_floored, True),
        tolerance=0.0,
        clause=1,
    ),
    _within("Equalised colours are OpenCV's.", steps.equalise_colours, _their_colours, 1),
    _within("Equalised luminance is within a level of OpenCV's.", steps.equalise_luminance, _their_luminance, 1),
    _within(
        "Brightening is within a level of scikit-image's HSV.", partial(steps.brighten, scale=BRIGHTER), _their_value, 1
    ),
    _within("Sharpening is OpenCV's filter.", steps.sharpen, _their_sharpening, 0),
    _within(
        "Unsharp mask and gamma are within a level of OpenCV's.", partial(steps.forward, noise=0), _their_forward, 1
    ),
    _within("The way back is within a level of OpenCV's.", steps.backward, _their_backward, 1),
    bound(
        "At least 95 % of edges have one of OpenCV's Canny within a pixel, and the other way round.",
        paper="Canny",
        value=_agreeing,
        at_least=95.0,
        unit="%",
        clause=1,
    ),
    bound(
        "The strongest line has at least 95 % of the votes of OpenCV's strongest.",
        paper="Hough",
        value=_votes,
        at_least=95.0,
        unit="%",
        clause=1,
    ),
    equal(
        "Harris' response at the corners is that of OpenCV's filters.",
        ours=partial(_cornered, False),
        theirs=partial(_cornered, True),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "Windows are OpenCV's boxes.",
        ours=partial(_boxes, False),
        theirs=partial(_boxes, True),
        tolerance=0.0,
        clause=1,
    ),
    bound(
        "The angle of a drawn line is found within half a degree.",
        paper="51.50° of a cue",
        value=_error,
        at_most=0.5,
        unit="degrees",
        clause=2,
    ),
)
