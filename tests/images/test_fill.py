"""Holes filled smoothly."""

import numpy as np
import pytest

from foveal.images.fill import eroded, grown, harmonic


def test_a_plane_is_carried_on():
    y, x = np.mgrid[:37, :53].astype(np.float32)
    picture = np.stack([0.3 * y + 0.5 * x, 2 - 0.1 * x], -1)
    holes = np.zeros((37, 53), bool)
    holes[8:20, 11:30] = holes[30:33, 4:50] = True
    made = harmonic(np.where(holes[..., None], np.float32(99), picture), holes)
    np.testing.assert_allclose(made[~holes], picture[~holes])
    assert abs(made - picture).max() < 0.15


def test_the_mean_value_property_holds_and_the_border_bounds():
    rng = np.random.default_rng(0)
    picture = rng.random((24, 31, 1)).astype(np.float32)
    holes = np.zeros((24, 31), bool)
    holes[5:12, 6:15] = holes[:3, 20:] = holes[20:, :1] = True
    made = harmonic(picture, holes)[..., 0]
    padded = np.pad(made, 1, mode="edge")
    around = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
    assert abs(made - around)[holes].max() < 0.02
    assert picture[~holes].min() <= made[holes].min()
    assert made[holes].max() <= picture[~holes].max()


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 2), (63, 1)])
def test_odd_sizes(shape):
    picture = np.full((*shape, 3), 0.25, np.float32)
    holes = np.ones(shape, bool)
    holes[0, 0] = False
    np.testing.assert_allclose(harmonic(picture * ~holes[..., None], holes), picture, atol=1e-6)


def test_nothing_lost_changes_nothing():
    picture = np.random.default_rng(0).random((6, 5, 3)).astype(np.float32)
    assert np.array_equal(harmonic(picture, np.zeros((6, 5), bool)), picture)


def test_masks_grow_and_shrink():
    mask = np.zeros((9, 9), bool)
    mask[3:6, 3:6] = True
    assert grown(mask, 2).sum() == 49
    assert np.array_equal(np.argwhere(eroded(mask, 1)), [[4, 4]])
    assert eroded(np.ones((4, 5), bool), 2).all()  # beyond the picture counts as belonging
