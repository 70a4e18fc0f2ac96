"""Colours found on networks whose answers are known."""

import numpy as np
import pytest
from numpy_networks import local, repeated, trimmed

from foveal.export.foreign.colours import RANGES, Colours, find_colours
from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.pictures import smooth
from foveal.export.foreign.sizes import Sizes


@pytest.mark.parametrize("range_in", ["0-1", "0-255", "-1-1"])
@pytest.mark.parametrize("range_out", ["0-1", "0-255", "-1-1"])
def test_ranges_are_found(range_in, range_out):
    way = Colours(range_in, range_out)

    def run(x):  # one that is off where its input does not fill the range that it expects
        low, high = RANGES[range_in]
        y = (x - low) / (high - low)
        y = y if y.min() < 0.3 and 0.7 < y.max() < 1 else y + 0.2
        low, high = RANGES[range_out]
        return low + (high - low) * repeated(y, 2)

    found = find_colours(run, Sizes(2, 0, 1, 1), "net")
    assert (found.range_in, found.range_out, found.order_in, found.order_out) == (range_in, range_out, "rgb", "rgb")
    x = np.random.default_rng(0).random((1, 3, 9, 9), np.float32)
    np.testing.assert_allclose(way.around(run)(x), repeated(x, 2), atol=1e-5)


def test_a_swapped_order_is_found():
    assert find_colours(lambda x: x[:, ::-1], Sizes(1, 0, 1, 1), "net").order_out == "bgr"


def test_blue_first_is_taken_only_where_it_is_clearly_closer():
    red, blue = smooth(40, 40)[0, 0].mean(), smooth(40, 40)[0, 2].mean()

    def wants(mean, size):  # shifts all it gives, unless what stands first has the mean that it expects
        def run(x):
            right = abs(x[:, 0].mean() - mean) < abs(red - blue) / 2 and x.min() >= 0
            return x if right else x + size * max(1, x.max())

        return run

    sizes = Sizes(1, 0, 1, 1)
    assert find_colours(wants(red, 0.1), sizes, "net").usual
    found = find_colours(wants(blue, 0.1), sizes, "net")
    assert (found.order_in, found.order_out) == ("bgr", "bgr")
    # Five decibels closer, and still no reason.
    assert find_colours(lambda x: wants(blue, 0.024)(x) + 0.03 * max(1, x.max()), sizes, "net").usual


def test_a_constant_error_does_not_speak_for_a_wider_range():
    assert find_colours(lambda x: x + 0.03, Sizes(1, 0, 1, 1), "net").range_in == "0-1"


def test_a_network_alike_in_every_range_is_taken_as_usual():
    assert find_colours(local(1), Sizes(2, 0, 1, 1), "net").usual


def test_what_does_not_resemble_its_picture_is_refused():
    with pytest.raises(ForeignModelError, match=r"resembles it in no range or order of colours \(closest: .* dB\)"):
        find_colours(lambda x: 0.5 + 0 * x, Sizes(1, 0, 1, 1), "net")


def test_a_trimming_network_is_compared_in_its_place():
    assert find_colours(trimmed(6), Sizes(2, 6, 1, 13), "net").psnr > 20
