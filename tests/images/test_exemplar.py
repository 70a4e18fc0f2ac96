"""Holes filled with texture."""

import numpy as np

from foveal.images.exemplar import exemplar
from foveal.images.fill import harmonic


def stripes(height=72, width=84):
    y, x = np.mgrid[:height, :width]
    return np.stack([0.5 + 0.4 * np.sin(2 * np.pi * (x + y) / 8), (x % 6 < 3) * 0.8], -1).astype(np.float32)


def test_a_texture_goes_on_where_a_smooth_fill_would_not():
    picture = stripes()
    holes = np.zeros(picture.shape[:2], bool)
    holes[26:44, 30:50] = True
    broken = np.where(holes[..., None], np.float32(0), picture)
    made, smooth = exemplar(broken, holes), harmonic(broken, holes)
    assert np.array_equal(made[~holes], picture[~holes])
    errors = [np.square(one - picture)[holes].mean() for one in (made, smooth)]
    assert errors[0] < 0.25 * errors[1]
    assert np.array_equal(made, exemplar(broken, holes))  # the same seed, the same fill


def test_what_is_unknown_is_neither_taken_nor_changed():
    picture = stripes()
    holes, unknown = np.zeros(picture.shape[:2], bool), np.zeros(picture.shape[:2], bool)
    holes[26:40, 30:44] = True
    unknown[:, 60:] = True
    broken = np.where(unknown[..., None], np.float32(7), picture)
    made = exemplar(broken, holes, unknown=unknown)
    assert made[holes].max() <= 1
    assert (made[unknown] == 7).all()


def test_no_whole_patch_leaves_the_smooth_fill():
    picture = stripes(12, 12)
    holes = np.ones((12, 12), bool)
    holes[::3, ::3] = False
    assert np.array_equal(exemplar(picture, holes), harmonic(picture, holes))
    assert np.array_equal(exemplar(picture, np.zeros((12, 12), bool)), picture)
