"""imresize against cases that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.images.resize import cubic, imresize


def test_cubic_is_keys_kernel():
    # a = -1/2: w(0) = 1, w(1/2) = 9/16, w(1) = 0, w(3/2) = -1/16, w(2) = 0.
    np.testing.assert_allclose(cubic(np.array([0, 0.5, 1, 1.5, 2, 3, -0.5])), [1, 9 / 16, 0, -1 / 16, 0, 0, 9 / 16])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize(("shape", "scale"), [((1, 1), 4), ((7, 5), 1 / 3), ((9, 1, 3), 2), ((5, 8, 4), 0.5)])
def test_a_constant_stays_constant(dtype, shape, scale):
    image = np.full(shape, 77, dtype)
    out = imresize(image, scale)
    assert out.dtype == dtype
    assert out.shape == (*(int(np.ceil(n * scale)) for n in shape[:2]), *shape[2:])
    np.testing.assert_allclose(out, 77, atol=1e-9)


def test_doubling_by_hand():
    # Output 3 of 8 lies at (3 + 1/2) / 2 - 1/2 = 1.25: distances 1.25, 0.25, 0.75, 1.75 to samples 0 to 3, that is
    # weights -9, 111, 29, -3 over 128.
    line = np.array([[10.0, 20.0, 40.0, 80.0]])
    out = imresize(line, size=(1, 8))
    assert out[0, 3] == pytest.approx((-9 * 10 + 111 * 20 + 29 * 40 - 3 * 80) / 128)
    # Output 0 lies at -0.25: its taps -2, -1, 0, 1 (weights -3, 29, 111, -9) use sample 0 thrice, for it repeats.
    assert out[0, 0] == pytest.approx(((-3 + 29 + 111) * 10 - 9 * 20) / 128)


def test_halving_by_hand():
    # The kernel stretched by 2 about the middle of four samples (1.5): distances 0.25, 0.75, 1.25, 1.75 on both sides.
    line = np.arange(8.0)[None] ** 2
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    assert imresize(line, size=(1, 4))[0, 1] == pytest.approx((weights[:, None] * 1).T @ [0, 0, 1, 4, 9, 16, 25, 36])


def test_a_ramp_stays_a_ramp_away_from_the_border():
    out = imresize(np.arange(20.0)[:, None] * np.ones((1, 3)), size=(40, 3))
    np.testing.assert_allclose(np.diff(out[6:-6, 1]), 0.5)


def test_rows_and_columns_are_treated_alike():
    image = np.random.default_rng(0).random((7, 7))
    np.testing.assert_allclose(imresize(image.T, 1.7), imresize(image, 1.7).T)


def test_integers_are_clipped_and_rounded():
    step = np.repeat(np.array([[0, 255]], np.uint8), 4, axis=1)
    out = imresize(step, size=(1, 16))
    assert out.min() == 0
    assert out.max() == 255


def test_single_precision_differs_by_at_most_one_level():
    image = np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    difference = imresize(image, 2, dtype=np.float32).astype(int) - imresize(image, 2)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("image", "options", "text"),
    [
        (np.zeros(3), {"scale": 2}, r"must be \(H, W\) or \(H, W, C\) and not empty, got shape \(3,\)"),
        (np.zeros((0, 3)), {"scale": 2}, "not empty"),
        (np.zeros((2, 2)), {}, "exactly one of scale and size"),
        (np.zeros((2, 2)), {"scale": 2, "size": (4, 4)}, "exactly one of scale and size"),
        (np.zeros((2, 2)), {"scale": 0}, "scale must be above 0, got 0"),
        (np.zeros((2, 2)), {"size": (0, 4)}, r"size must be at least 1 by 1, got \(0, 4\)"),
    ],
)
def test_errors(image, options, text):
    with pytest.raises(ValueError, match=text):
        imresize(image, **options)
