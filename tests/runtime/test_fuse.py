import numpy as np
import pytest

from foveal.images import pyramid
from foveal.runtime import fuse
from foveal.runtime.fuse import RULES, FuseError


def grey(seed=0, height=37, width=50):
    coarse = np.random.default_rng(seed).random((height, width), np.float32)
    return (coarse + np.roll(coarse, 1, 0) + np.roll(coarse, 1, 1)) / 3


@pytest.mark.parametrize("rule", RULES)
def test_a_picture_fused_with_itself_stays(rule):
    x = grey()
    np.testing.assert_allclose(RULES[rule](x, x), x, atol=2e-5)


def test_average_and_maximum_by_hand():
    a, b = np.float32([[0, 1]]), np.float32([[0.5, 0.25]])
    np.testing.assert_allclose(fuse.average(a, b), [[0.25, 0.625]])
    np.testing.assert_allclose(fuse.maximum(a, b), [[0.5, 1]])


def test_laplacian_keeps_details_and_averages_what_is_flat():
    a, flat = grey(), np.full((37, 50), 0.5, np.float32)
    *details, base = pyramid.laplacian(a, 3)
    wanted = pyramid.collapse([*details, (base + 0.5) / 2])
    for out in (fuse.laplacian(a, flat), fuse.laplacian(flat, a)):
        np.testing.assert_allclose(out, wanted, atol=1e-6)


def test_guided_takes_each_half_from_where_the_texture_is():
    texture, flat = grey(1, 64, 128), np.full((64, 128), 0.5, np.float32)
    a, b = texture.copy(), flat.copy()
    a[:, 64:], b[:, 64:] = 0.5, texture[:, 64:]
    details = fuse.guided(a, b)[:, 8:-8] - texture[:, 8:-8]
    assert details.std() < 0.25 * texture.std()


def test_guided_filter_by_sums_over_every_window():
    guide, x, radius, eps = grey(2, 9, 11), grey(3, 9, 11), 2, 0.01

    def windows(i, j):
        return np.s_[max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1]

    slope, offset = np.zeros((2, 9, 11))
    for at in np.ndindex(9, 11):
        g, v = guide[windows(*at)].astype(float), x[windows(*at)].astype(float)
        slope[at] = ((g * v).mean() - g.mean() * v.mean()) / (g.var() + eps)
        offset[at] = v.mean() - slope[at] * g.mean()
    wanted = [slope[windows(*at)].mean() * guide[at] + offset[windows(*at)].mean() for at in np.ndindex(9, 11)]
    np.testing.assert_allclose(fuse._guided_filter(guide, x, radius, eps).ravel(), wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 2), (20, 30, 3), (20, 30, 4)])
def test_shape_dtype_and_alpha_stay(shape, dtype):
    top = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    visible = (np.random.default_rng(0).random(shape) * top).astype(dtype)
    infrared = (grey(4, 20, 30) * 255).astype(np.uint8)
    out = fuse.fuse(visible, infrared)
    assert (out.shape, out.dtype) == (visible.shape, visible.dtype)
    assert out.min() >= 0
    assert out.max() <= top
    if shape[2:] in ((2,), (4,)):
        np.testing.assert_array_equal(out[..., -1], visible[..., -1])


def test_colour_stays_and_luminance_is_fused():
    visible = 0.3 + 0.4 * np.random.default_rng(1).random((16, 16, 3))
    infrared = np.full((16, 16), 0.6)
    out = fuse.fuse(visible, infrared, rule="average")
    luma = visible @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(out - visible, np.repeat(((0.6 - luma) / 2)[..., None], 3, 2), atol=1e-6)


def test_infrared_in_colour_counts_by_luminance():
    visible, plane = grey(5), grey(6)
    colour = np.repeat(plane[..., None], 3, 2)
    np.testing.assert_allclose(fuse.fuse(visible, colour), fuse.fuse(visible, plane), atol=1e-6)


def test_what_cannot_be_fused_is_refused():
    x = np.zeros((4, 6), np.uint8)
    with pytest.raises(FuseError, match="must have one size, got 6×4 visible and 5×4 infrared; align and resize"):
        fuse.fuse(x, x[:, :5])
    with pytest.raises(FuseError, match="one of average, maximum, laplacian, guided, got 'mean'"):
        fuse.fuse(x, x, rule="mean")
    with pytest.raises(
        FuseError, match=r"the infrared picture must be uint8, uint16 or floating .* got int32; convert"
    ):
        fuse.fuse(x, x.astype(np.int32))
    with pytest.raises(FuseError, match=r"the visible picture must be .* got shape \(4, 6, 5\)"):
        fuse.fuse(np.zeros((4, 6, 5)), x)


@pytest.mark.parametrize("shape", [(33, 40), (33, 40, 3), (33, 40, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_equal_exposures_merge_to_themselves(shape, dtype):
    top = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    x = (np.random.default_rng(2).random(shape) * top).astype(dtype)
    np.testing.assert_allclose(fuse.merge([x, x, x]).astype(float), x, atol=1e-5 * top + (top > 1))


def test_merge_takes_what_is_well_exposed():
    scene = np.stack([grey(seed, 64, 64) for seed in range(3)], 2)
    scene[:, :32] *= 0.2
    scene[:, 32:] = 0.8 * scene[:, 32:] + 1
    short, long = np.clip(scene - 0.8, 0, 1), np.clip(scene * 4, 0, 1)  # each shows one half
    out = fuse.merge([short, long])
    dark, light = np.s_[8:-8, 4:24], np.s_[8:-8, 40:60]
    for part, source in ((dark, long), (light, short)):
        assert np.corrcoef(out[part].ravel(), source[part].ravel())[0, 1] > 0.95


def test_merge_by_hand_on_one_pixel():
    """One pixel has no contrast and one level: the weights are equal, the mean remains."""
    out = fuse.merge([np.full((1, 1, 3), 0.2), np.full((1, 1, 3), 0.6)])
    np.testing.assert_allclose(out, 0.4, atol=1e-6)


def test_what_cannot_be_merged_is_refused():
    x = np.zeros((4, 6), np.uint8)
    with pytest.raises(FuseError, match="at least two pictures, got 1; pass further exposures"):
        fuse.merge([x])
    with pytest.raises(FuseError, match=r"like the first, \(4, 6\) uint8, got \(4, 6\) uint16 as number 3; convert"):
        fuse.merge([x, x, x.astype(np.uint16)])
