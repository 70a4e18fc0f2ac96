"""Rows as a file stores them."""

import numpy as np
import pytest
from picture_samples import display_p3

from foveal.images import Metadata
from foveal.images.formats import FORMATS
from foveal.images.stored import Stored


def stored(name, channels, *, frames=1, background=None, **metadata):
    return Stored(FORMATS[name], channels, Metadata(**metadata), frames=frames, background=background)


def rows(*values, dtype=np.uint8):
    """One row of one pixel."""
    return np.array(values, dtype).reshape(1, 1, -1)


def test_bits_are_expanded_and_rounded():
    deep, plain = stored("png", 1, bits=16), stored("jpeg", 1, bits=16)
    assert (deep.deep, deep.depth, plain.deep, plain.depth) == (True, 12, False, 8)
    assert deep.rows(rows(1)).tolist() == [[[257]]]
    assert plain.rows(rows(257 + 128, dtype=np.uint16)).tolist() == [[[1]]]
    assert plain.rows(rows(257 + 129, dtype=np.uint16)).tolist() == [[[2]]]
    assert not stored("png", 1, bits=16, frames=2).deep


@pytest.mark.parametrize(("depth", "bits"), [(10, 10), (12, 12), (16, 12)])
def test_avif_keeps_its_depth_in_the_high_bits(depth, bits):
    avif = stored("avif", 3, bits=16, depth=depth)
    assert avif.depth == bits
    most = ((1 << bits) - 1) << (16 - bits)
    assert avif.rows(rows(0, 65535, 32768, dtype=np.uint16)).ravel().tolist() == [0, most, 1 << 15]


@pytest.mark.parametrize(
    ("name", "given", "channels"), [("png", 2, 2), ("bmp", 1, 1), ("bmp", 2, 4), ("bmp", 4, 4), ("jpeg", 1, 1)]
)
def test_channels(name, given, channels):
    form = stored(name, given)
    assert form.channels == channels
    assert form.rows(np.zeros((2, 3, given), np.uint8)).shape == (2, 3, channels)


def test_transparency_is_laid_on_the_background():
    form = stored("jpeg", 4, background=(10, 20, 30))
    assert form.rows(rows(200, 200, 200, 0)).ravel().tolist() == [10, 20, 30]


def test_a_profile_that_the_format_cannot_hold_is_converted():
    wide, held = (stored(name, 3, icc=display_p3()) for name in ("bmp", "png"))
    assert wide.icc is None
    assert held.icc == display_p3()
    red, _, _ = wide.rows(rows(200, 100, 100)).ravel()
    assert red > 205
    assert held.rows(rows(200, 100, 100)).ravel().tolist() == [200, 100, 100]
