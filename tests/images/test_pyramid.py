import numpy as np
import pytest

from foveal.images import pyramid

KERNEL = np.array([1, 4, 6, 4, 1]) / 16


def plain_reduce(x):
    """Filtered along one axis with repeated edges, every second sample."""
    return np.array([sum(w * x[np.clip(2 * i + k - 2, 0, len(x) - 1)] for k, w in enumerate(KERNEL))
                     for i in range(-(-len(x) // 2))])  # fmt: skip


def plain_expand(x, size):
    """Zeros between the samples, twice the kernel; edges repeated before."""
    zeros = np.zeros((2 * len(x) + 4, *x.shape[1:]))
    zeros[::2] = np.pad(x, [(1, 1)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    return np.array([sum(2 * w * zeros[i + k] for k, w in enumerate(KERNEL)) for i in range(size)])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 5), (8, 16), (9, 4, 3)])
def test_reduce_and_expand_are_filters(shape):
    x = np.random.default_rng(0).random(shape)
    wanted = plain_reduce(plain_reduce(x).swapaxes(0, 1)).swapaxes(0, 1)
    small = pyramid.reduce(x)
    np.testing.assert_allclose(small, wanted, atol=1e-12)
    back = plain_expand(plain_expand(small, shape[0]).swapaxes(0, 1), shape[1]).swapaxes(0, 1)
    np.testing.assert_allclose(pyramid.expand(small, *shape[:2]), back, atol=1e-12)


def test_a_flat_picture_stays_flat():
    levels = pyramid.laplacian(np.full((13, 22), 0.3), 3)
    assert all(abs(level).max() < 1e-12 for level in levels[:-1])
    np.testing.assert_allclose(levels[-1], 0.3)


@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (31, 17, 3)])
def test_collapse_is_the_inverse(shape):
    x = np.random.default_rng(1).random(shape, np.float32)
    levels = pyramid.laplacian(x, 4)
    assert len(levels) == 4
    assert levels[0].dtype == np.float32
    np.testing.assert_allclose(pyramid.collapse(levels), x, atol=1e-6)


def test_gaussian_starts_with_the_picture_and_halves():
    x = np.random.default_rng(2).random((9, 16))
    assert [level.shape for level in pyramid.gaussian(x, 3)] == [(9, 16), (5, 8), (3, 4)]
    assert pyramid.gaussian(x, 3)[0] is x


@pytest.mark.parametrize(
    ("size", "levels"), [((7, 900), 1), ((15, 15), 1), ((16, 40), 2), ((32, 32), 3), ((31, 31), 3)]
)
def test_depth_goes_down_to_eight_pixels(size, levels):
    assert pyramid.depth(*size) == levels
