"""What is measured, on networks of NumPy whose answers are known."""

import numpy as np
import pytest

from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.measure import (
    EXACT,
    RANGES,
    Colours,
    Sizes,
    _smooth,
    find_colours,
    find_field,
    find_period,
    find_sizes,
    takes_batches,
)


def repeated(x, scale):
    return x.repeat(scale, axis=2).repeat(scale, axis=3)


def local(radius, scale=2, share=0.2):
    """A pixel, and a share of the four pixels that lie `radius` away."""

    def run(x):
        p = np.pad(x, ((0, 0), (0, 0), (radius, radius), (radius, radius)))
        h, w = x.shape[2:]
        far = sum(p[:, :, dy : dy + h, dx : dx + w] for dy, dx in ((0, radius), (radius, 0), (2 * radius, radius)))
        far = far + p[:, :, radius : radius + h, 2 * radius : 2 * radius + w]
        return repeated((1 - share) * x + share / 4 * far, scale)

    return run


def trimmed(radius, scale=2):
    inside = local(radius, scale)
    edge = radius * scale
    return lambda x: inside(x)[:, :, edge:-edge, edge:-edge]


def windowed(side, share=0.3, pads=False):
    """A pixel, and a share of the mean of its window; windows start at the picture's corner."""

    def run(x):
        h, w = x.shape[2:]
        if (h % side or w % side) and not pads:
            raise RuntimeError(f"{h}×{w} is no multiple of {side}")
        p = np.pad(x, ((0, 0), (0, 0), (0, -h % side), (0, -w % side)), mode="edge")
        blocks = p.reshape(*p.shape[:2], p.shape[2] // side, side, p.shape[3] // side, side)
        mean = np.broadcast_to(blocks.mean((3, 5), keepdims=True), blocks.shape).reshape(p.shape)
        return ((1 - share) * p + share * mean)[:, :, :h, :w]

    return run


def whole(share=0.3):
    return lambda x: (1 - share) * x + share * x.mean((2, 3), keepdims=True)


@pytest.mark.parametrize(
    ("run", "sizes"),
    [
        (local(3, 2), Sizes(2, 0, 1, 1)),
        (local(2, 1), Sizes(1, 0, 1, 1)),
        (local(1, 3), Sizes(3, 0, 1, 1)),
        (trimmed(7), Sizes(2, 7, 1, 15)),
        (windowed(8), Sizes(1, 0, 8, 8)),
        (windowed(7), Sizes(1, 0, 7, 7)),
        (windowed(8, pads=True), Sizes(1, 0, 1, 1)),
    ],
)
def test_sizes(run, sizes):
    assert find_sizes(run, "net") == sizes


def test_a_minimum_is_found():
    def run(x):
        if min(x.shape[2:]) < 20:
            raise RuntimeError("too small")
        return x

    # It doubles from the multiple, so what it finds works and need not be the least.
    assert find_sizes(run, "net") == Sizes(1, 0, 1, 32)
    assert find_sizes(run, "net", minimum=24) == Sizes(1, 0, 1, 24)


def test_a_padded_result_is_not_taken_for_the_size():
    def run(x):  # pads to whole fours and leaves it so
        return np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % 4), (0, -x.shape[3] % 4)))

    assert find_sizes(run, "net").multiple == 4


def whatever(x):
    raise RuntimeError("no such size\nand more")


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda x: np.zeros((len(x), 1000)), "gives 1×1000, not a picture; only models from picture to picture"),
        (lambda x: x[:, :1], r"gives 1 channels, foveal runs models of RGB pictures \(3\)"),
        (lambda x: x * np.nan, "gives values that are no numbers; the file is damaged"),
        (
            lambda x: x.repeat(2, axis=2),
            "by the same whole number, this one enlarges by 2 by 1; take a model of another",
        ),
        (lambda x: x[:, :, ::2, ::2], "enlarges by 0.5; take a model of another scale"),
        (lambda x: x[:, :, 1:, 1:], "which is not 1 times as large nor trimmed evenly"),
        (whatever, r"took no picture of 32 to 256 pixels a side \(no such size\); export it with free height"),
    ],
)
def test_what_is_no_enlarging_network_is_refused(run, text):
    with pytest.raises(ForeignModelError, match=text):
        find_sizes(run, "net")


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
    red, blue = _smooth(40, 40)[0, 0].mean(), _smooth(40, 40)[0, 2].mean()

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


@pytest.mark.parametrize(("run", "multiple", "period"), [(windowed(8, pads=True), 1, 8), (windowed(8), 8, 8)])
def test_periods(run, multiple, period):
    assert find_period(run, Sizes(1, 0, multiple, multiple)) == period


@pytest.mark.parametrize("run", [local(3, 1), whole()])
def test_what_has_no_windows_has_no_period(run):
    assert find_period(run, Sizes(1, 0, 1, 1)) == 1


@pytest.mark.parametrize("radius", [1, 5, 24, 40])
def test_the_field_ends_where_it_ends(radius):
    field = find_field(local(radius, 1), Sizes(1, 0, 1, 1))
    assert (field.tiling, field.margin) == ("exact", radius)
    assert field.beyond == 0


def test_a_field_to_one_side_is_seen():
    def down(x):
        return 0.5 * x + 0.5 * np.pad(x, ((0, 0), (0, 0), (0, 9), (0, 0)))[:, :, 9:]

    assert find_field(down, Sizes(1, 0, 1, 1)).margin == 9
    assert find_field(lambda x: down(x[:, :, ::-1])[:, :, ::-1], Sizes(1, 0, 1, 1)).margin == 9


def test_the_field_of_a_trimming_network_is_what_it_trims():
    assert find_field(trimmed(6), Sizes(2, 6, 1, 13)).margin == 6


def test_a_network_that_sees_the_whole_picture_is_said_to():
    field = find_field(whole(), Sizes(1, 0, 1, 1))
    assert field.tiling == "overlap"
    assert field.beyond > EXACT


def test_batches():
    sizes = Sizes(1, 0, 1, 1)
    assert takes_batches(whole(), sizes)
    assert not takes_batches(lambda x: x - x.mean(), sizes)

    def one(x):
        if len(x) > 1:
            raise RuntimeError("one at a time")
        return x

    assert not takes_batches(one, sizes)


def test_a_field_that_fades_is_given_a_reserve():
    def fading(x):  # each pixel farther counts a third
        y = np.zeros_like(x)
        for d in range(12):
            y += 3.0**-d * np.pad(x, ((0, 0), (0, 0), (0, 0), (d, 0)))[..., : x.shape[3]]
        return y * (2 / 3)

    field = find_field(fading, Sizes(1, 0, 1, 1))
    assert field.tiling == "exact"
    assert 8 <= field.margin <= 13
