"""Periods and fields found on networks whose answers are known."""

import numpy as np
import pytest
from numpy_networks import local, trimmed, whole, windowed

from foveal.export.foreign.field import EXACT, find_field, find_period
from foveal.export.foreign.sizes import Sizes


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


def test_a_field_that_fades_is_given_a_reserve():
    def fading(x):  # each pixel farther counts a third
        y = np.zeros_like(x)
        for d in range(12):
            y += 3.0**-d * np.pad(x, ((0, 0), (0, 0), (0, 0), (d, 0)))[..., : x.shape[3]]
        return y * (2 / 3)

    field = find_field(fading, Sizes(1, 0, 1, 1))
    assert field.tiling == "exact"
    assert 8 <= field.margin <= 13
