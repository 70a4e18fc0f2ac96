"""Sizes found on networks whose answers are known."""

import numpy as np
import pytest
from numpy_networks import local, trimmed, whole, windowed

from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.sizes import Sizes, find_sizes, takes_batches


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


def test_batches():
    sizes = Sizes(1, 0, 1, 1)
    assert takes_batches(whole(), sizes)
    assert not takes_batches(lambda x: x - x.mean(), sizes)

    def one(x):
        if len(x) > 1:
            raise RuntimeError("one at a time")
        return x

    assert not takes_batches(one, sizes)
