"""Multiplying by alpha and dividing again."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.images import premultiply, unpremultiply


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_opaque_pixels_stay_exactly_as_they_are(dtype):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    colours = np.linspace(0, top, 256 * 3).reshape(16, 16, 3).astype(dtype)
    pixels = np.dstack([colours, np.full((16, 16), top, dtype)])
    for function in (premultiply, unpremultiply):
        out = function(pixels)
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, pixels)


def test_every_8_bit_product_is_rounded_to_nearest():
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    pixels = np.stack([value, alpha], -1).astype(np.uint8)
    np.testing.assert_array_equal(premultiply(pixels)[..., 0], np.floor(value * alpha / 255 + 0.5))
    multiplied = np.stack([np.minimum(value, alpha), alpha], -1).astype(np.uint8)
    again = premultiply(unpremultiply(multiplied))
    np.testing.assert_array_equal(again, multiplied)


def test_extremes_of_16_bits():
    pixels = np.array([[65535, 65535], [65535, 1], [1, 65535], [40000, 0]], np.uint16)
    np.testing.assert_array_equal(premultiply(pixels)[:, 0], [65535, 1, 1, 0])
    np.testing.assert_array_equal(unpremultiply(pixels)[:, 0], [65535, 65535, 1, 0])


def test_floating_point_comes_back():
    pixels = np.random.default_rng(0).random((5, 4, 4)) * 0.9 + 0.05
    np.testing.assert_allclose(unpremultiply(premultiply(pixels)), pixels)
    pixels[0, 0, 3] = 0
    assert (unpremultiply(pixels)[0, 0] == 0).all()


def test_the_input_is_not_changed():
    pixels = np.full((2, 2, 4), 100, np.uint8)
    premultiply(pixels)
    unpremultiply(pixels)
    assert (pixels == 100).all()


@pytest.mark.parametrize("function", [premultiply, unpremultiply])
def test_errors(function):
    with pytest.raises(ValueError, match=r"2 or 4 channels, alpha last, got shape \(2, 2, 3\)"):
        function(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8, uint16 or floating point, got int32"):
        function(np.zeros((2, 2, 4), np.int32))
