import numpy as np
import pytest

from foveal.runtime import pixel_art
from foveal.runtime.pixel_art import enlarge_pixel_art
from foveal.runtime.upscaler import Upscaler
from foveal.runtime.wrapping import unwrapped, wrapped


def whole(pixels, scale):
    return np.concatenate(list(enlarge_pixel_art(pixels, scale)))


def scale2x(pixels):
    """Scale2x by its rule, pixel by pixel."""
    height, width = pixels.shape[:2]
    out = np.empty((2 * height, 2 * width, pixels.shape[2]), pixels.dtype)
    for y, x in np.ndindex(height, width):
        e = pixels[y, x]
        b, h = pixels[max(0, y - 1), x], pixels[min(height - 1, y + 1), x]
        d, f = pixels[y, max(0, x - 1)], pixels[y, min(width - 1, x + 1)]

        def same(p, q):
            return (p == q).all()

        ways = not same(b, h) and not same(d, f)
        out[2 * y, 2 * x] = d if ways and same(d, b) else e
        out[2 * y, 2 * x + 1] = f if ways and same(b, f) else e
        out[2 * y + 1, 2 * x] = d if ways and same(d, h) else e
        out[2 * y + 1, 2 * x + 1] = f if ways and same(h, f) else e
    return out


def sprite(height, width, channels=3, colours=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (colours, channels)).astype(dtype)
    return palette[rng.integers(0, colours, (height, width))]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_twice_is_the_rule(channels, dtype):
    pixels = sprite(9, 13, channels, dtype=dtype)
    np.testing.assert_array_equal(whole(pixels, 2), scale2x(pixels))
    np.testing.assert_array_equal(whole(pixels, 4), scale2x(scale2x(pixels)))


def test_thrice_of_a_slanted_edge_by_hand():
    pixels = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1]], np.uint8)[..., None]
    middle = whole(pixels, 3)[3:6, 3:6, 0]
    # Above and left of the middle are 0, below and right 1: the corner between them becomes 0.
    np.testing.assert_array_equal(middle, [[0, 1, 1], [1, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_no_colour_is_new_and_flat_stays_flat(scale):
    pixels = sprite(20, 17, 4)
    made = whole(pixels, scale)
    assert made.shape == (20 * scale, 17 * scale, 4)
    assert {tuple(p) for p in made.reshape(-1, 4)} <= {tuple(p) for p in pixels.reshape(-1, 4)}
    flat = np.full((3, 4, 3), 7, np.uint8)
    assert (whole(flat, scale) == 7).all()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bands_are_the_whole(scale, monkeypatch):
    pixels = sprite(23, 11)
    at_once = whole(pixels, scale)
    monkeypatch.setattr(pixel_art, "_BAND", 4)
    np.testing.assert_array_equal(whole(pixels, scale), at_once)


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="2, 3 or 4 times larger, got a scale of 5"):
        list(enlarge_pixel_art(sprite(3, 3), 5))


@pytest.mark.parametrize("scale", [2, 4])
def test_the_upscaler_uses_it(scale):
    pixels = sprite(12, 15)
    upscale = Upscaler(scale, "fast", content="pixel", threads=1)
    regions = []
    made = upscale(pixels, lambda done, total, region: regions.append((done, total, region)))
    np.testing.assert_array_equal(made, whole(pixels, scale))
    assert regions[-1][0] == regions[-1][1]
    plan = upscale.plan(pixels)
    assert (plan.bundle, plan.engine, upscale.engine()) == ("pixel art", "numpy", "numpy")
    with pytest.raises(ValueError, match="content must be one of auto, pixel, got 'sprite'"):
        Upscaler(scale, content="sprite")


@pytest.mark.parametrize("content", ["auto", "pixel"])
@pytest.mark.parametrize("tile", [8, 1000])
def test_a_texture_that_wraps_still_does(content, tile, natural):
    texture = natural(14, 10)
    upscale = Upscaler(2, "fast", engine="onnxruntime", threads=1, content=content, wrap=True, tile=tile)
    made = upscale(texture)
    assert made.shape == (28, 20, 3)
    moved = upscale(np.roll(texture, (5, 3), (0, 1)))
    np.testing.assert_array_equal(moved, np.roll(made, (10, 6), (0, 1)))


def test_borders_of_a_wrap_are_cut_from_bands():
    texture = np.arange(5 * 4).reshape(5, 4, 1)
    big = wrapped(texture, 7).repeat(2, 0).repeat(2, 1)
    out = np.zeros((10, 8, 1), int)
    done = []
    bands = unwrapped([big[:9], big[9:20], big[20:]], 7, (5, 4), 2, out=out, step=done.append)
    np.testing.assert_array_equal(np.concatenate(list(bands)), texture.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(out, texture.repeat(2, 0).repeat(2, 1))
    assert done == [(0, 0, 8, 6), (0, 6, 8, 10)]
