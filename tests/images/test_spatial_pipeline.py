import sys

import cv2
import numpy as np
import pytest
import scipy.stats  # noqa: F401 - loaded by Harris, before the clock of the budget runs
import skimage

from foveal.images import spatial_pipeline as steps

# Loaded before the clock of the budget runs.
LOADED = (skimage.feature.canny, skimage.measure.regionprops, skimage.morphology.closing, skimage.transform.hough_line)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def furthest(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


def test_levels_by_hand():
    x = np.array([[0, 30, 31, 60, 61, 190, 220, 221, 255]], np.uint8)
    assert steps.quantise(x).tolist() == [[10, 10, 20, 20, 50, 140, 180, 200, 200]]
    every = np.arange(256, dtype=np.uint8)[None]
    floored = steps.quantise(every, range(31, 255, 32), range(0, 256, 32))
    assert np.array_equal(floored, every // 32 * 32)
    assert len(np.unique(steps.quantise(every))) == 8


def test_equalising_is_opencvs():
    x = drawn(31, 17) // 3
    assert np.array_equal(steps.equalise(x), cv2.equalizeHist(x))
    flat = np.full((3, 4), 7, np.uint8)
    assert np.array_equal(steps.equalise(flat), flat)
    colours = drawn(9, 11, 3) // 2
    separate = [cv2.equalizeHist(np.ascontiguousarray(colours[..., i])) for i in range(3)]
    assert np.array_equal(steps.equalise_colours(colours), np.stack(separate, 2))


def test_luminance_is_equalised_and_colour_kept():
    x = (40 + drawn(40, 30, 3) // 4).astype(np.uint8)
    y = cv2.cvtColor(x, cv2.COLOR_RGB2YCrCb)
    assert np.array_equal(steps.grey(x), y[..., 0])
    y[..., 0] = cv2.equalizeHist(y[..., 0])
    assert furthest(steps.equalise_luminance(x), cv2.cvtColor(y, cv2.COLOR_YCrCb2RGB)) <= 1


def test_brightening_scales_the_value_alone():
    x = np.array([[[100, 50, 0], [204, 100, 40], [0, 0, 0]]], np.uint8)
    assert steps.brighten(x, 1.5).tolist() == [[[150, 75, 0], [255, 125, 50], [0, 0, 0]]]
    assert np.array_equal(steps.brighten(x, 1.0), x)


def test_sharpening_is_the_filter():
    x = drawn(7, 9, 3)
    kernel = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32)
    assert np.array_equal(steps.sharpen(x), cv2.filter2D(x, -1, kernel))


def test_forward_is_seeded_and_backward_comes_back():
    rows, columns = np.mgrid[:24, :32]
    x = np.stack([4 * columns + 60, 5 * rows + 70, 3 * columns + 2 * rows + 50], 2).astype(np.uint8)
    there = steps.forward(x, seed=1)
    assert np.array_equal(there, steps.forward(x, seed=1))
    assert not np.array_equal(there, steps.forward(x, seed=2))
    assert furthest(steps.backward(steps.forward(x, noise=0)), x) <= 3
    sharp = x / 255 + (x / 255 - skimage.filters.gaussian(x / 255, 1.0, channel_axis=2))
    assert furthest(steps.forward(x, noise=0), np.rint(255 * np.clip(sharp, 0, 1) ** 0.8)) <= 1


@pytest.mark.parametrize("angle", [0.0, 51.5, 90.0, -33.2])
def test_the_angle_of_a_line(angle):
    rows, columns = np.mgrid[:151, :151] - 75
    turned = np.deg2rad(angle)
    distance = np.abs(columns * np.sin(turned) + rows * np.cos(turned) - 7.3)
    found = steps.line_angle(steps.edges(np.rint(255 * np.clip(2 - distance, 0, 1)).astype(np.uint8)))
    assert abs((found - angle + 90) % 180 - 90) <= 0.5
    assert -90 < found <= 90


def test_corners_and_window_of_a_square():
    picture = np.zeros((40, 50), np.uint8)
    picture[10:30, 15:40] = 255
    found = steps.corners(picture, count=4)
    assert len(found) == 4
    wanted = {(10, 15), (10, 39), (29, 15), (29, 39)}
    assert all(min(abs(r - a) + abs(c - b) for a, b in wanted) <= 2 for r, c in found)
    top, left, bottom, right = steps.window(steps.edges(picture))
    assert max(abs(top - 10), abs(left - 15), abs(bottom - 30), abs(right - 40)) <= 1


def test_the_whole_pipeline_and_a_flat_picture():
    picture = np.zeros((40, 50, 3), np.uint8)
    picture[10:30, 15:40] = 200
    seen = steps.analyse(picture)
    assert seen.levels.tolist() == steps.quantise(steps.grey(picture)).tolist()
    assert np.array_equal(seen.enhanced, steps.sharpen(steps.equalise_luminance(picture)))
    assert seen.angle == pytest.approx(0, abs=0.5) or abs(seen.angle) == pytest.approx(90, abs=0.5)
    assert seen.window is not None
    flat = steps.analyse(np.full((9, 9, 3), 80, np.uint8))
    assert flat.angle is None
    assert flat.window is None
    assert not flat.edges.any()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: steps.grey(np.zeros((2, 2, 3))), TypeError, "a picture must be uint8, 0 to 255, got float64; scale"),
        (lambda: steps.quantise(np.zeros((2, 2, 3), np.uint8)), ValueError, r"must be \(H, W\), .* got \(2, 2, 3\)"),
        (lambda: steps.sharpen(np.zeros((2, 2), np.uint8)), ValueError, r"must be \(H, W, 3\), .* got \(2, 2\)"),
        (lambda: steps.quantise(np.zeros((2, 2), np.uint8), (9, 5), (1, 2, 3)), ValueError, "thresholds must ascend"),
        (
            lambda: steps.quantise(np.zeros((2, 2), np.uint8), (5,), (1,)),
            ValueError,
            r"one more, got \(5,\) and \(1,\)",
        ),
        (lambda: steps.brighten(np.zeros((2, 2, 3), np.uint8), -1), ValueError, "scale must be at least 0, got -1"),
        (lambda: steps.line_angle(np.zeros((3, 3), bool)), ValueError, "has no edge, so no line; lower the thresholds"),
        (lambda: steps.window(np.zeros((3, 3), bool)), ValueError, "has no edge, so no window; lower the thresholds"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_without_scikit_image_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(steps.MissingScikitImageError, match=r"are scikit-image's; say pip install '.*\[classical\]'"):
        steps.edges(np.zeros((3, 3), np.uint8))
