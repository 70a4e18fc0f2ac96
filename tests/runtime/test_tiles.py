import itertools

import numpy as np
import pytest

from foveal.runtime.bundle import Card
from foveal.runtime.tiles import Piece, cut, make_grid


def card(margin=3, trims=True, multiple=1, scale=2):
    return Card("t", scale, margin, trims, {"float": "m"}, multiple=multiple)


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize("multiple", [1, 2, 8])
@pytest.mark.parametrize(
    ("height", "width", "tile"), [(1, 1, 16), (1, 500, 64), (63, 100, 32), (97, 64, 33), (7, 7, 7)]
)
def test_every_pixel_is_made_once_and_bands_go_down(height, width, tile, multiple, automatic):
    grid = make_grid(height, width, tile, card(multiple=multiple), automatic=automatic)
    made = np.zeros((height, width), int)
    top = bands = 0
    while top < height:
        bottom, pieces = grid.band(top)
        assert bottom > top
        for piece in pieces:
            assert piece.top % multiple == piece.left % multiple == 0
            assert 0 <= piece.rows[0] < piece.rows[1] <= grid.tile[0]
            assert 0 <= piece.columns[0] < piece.columns[1] <= grid.tile[1]
            assert piece.top + piece.rows[0] == top
            first, last = piece.left + piece.columns[0], piece.left + piece.columns[1]
            made[top:bottom, first:last] += 1
        top, bands = bottom, bands + 1
    assert (made == 1).all()
    assert bands == grid.rows
    assert grid.tiles == grid.rows * grid.columns
    assert all(side % multiple == 0 for side in grid.side)


def test_tiles_keep_to_the_wish():
    assert make_grid(100, 100, 60, card()).tile == (50, 50)
    assert make_grid(100, 100, 60, card(), automatic=True).tile == (50, 50)
    assert make_grid(80, 80, 60, card()).tile == (40, 40)
    # Automatic tiles grow by up to a half instead of being split.
    assert make_grid(80, 80, 60, card(), automatic=True).tile == (80, 80)
    # A picture a million wide gets flat tiles, so that a band fits in memory.
    assert make_grid(1000, 1_000_000, 256, card(), automatic=True).tile[0] < 40


def test_margins_of_networks_that_trim_and_of_those_that_do_not():
    assert make_grid(50, 50, 50, card(margin=3)).side == (56, 56)
    assert make_grid(50, 50, 50, card(margin=3, trims=False, multiple=4)).margin == 4
    assert make_grid(50, 50, 50, card(margin=3, trims=False, multiple=4)).side == (60, 60)


def test_small_tiles_run_together():
    grid = make_grid(64, 640, 64, card())
    assert grid.batch > 1
    _, pieces = grid.band(0)
    assert list(itertools.chain(*grid.batches(pieces))) == pieces
    assert pieces[0] == Piece(0, 0, (0, 64), (0, 64))


def test_cut_mirrors_at_the_edge():
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    padded = np.pad(image, ((9, 9), (9, 9), (0, 0)), mode="symmetric")
    for top, left, height, width in [(0, 0, 5, 4), (-3, -2, 11, 8), (4, 3, 6, 7), (-9, 1, 12, 1), (1, 1, 2, 2)]:
        into = np.empty((height, width, 3), np.uint8)
        cut(image, top, left, into)
        np.testing.assert_array_equal(into, padded[9 + top : 9 + top + height, 9 + left : 9 + left + width])


def test_cut_scales_and_spreads_grey():
    image = np.array([[[0], [65535]]], np.uint16)
    into = np.empty((3, 3, 4), np.float32).transpose(1, 2, 0)
    cut(image, -1, -1, into, 1 / 65535)
    np.testing.assert_allclose(into, np.array([0, 0, 1, 1])[None, :, None].repeat(3, 0).repeat(3, 2))


def test_nothing_to_cut():
    with pytest.raises(ValueError, match="at least one pixel, got 0×5"):
        make_grid(5, 0, 8, card())
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        make_grid(5, 5, 0, card())
