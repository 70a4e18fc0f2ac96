import numpy as np
import pytest
from PIL import Image, ImageDraw

from foveal.images.resize import imresize
from foveal.runtime.local_range import GRAPHIC_SHARE, REACH, hold, is_graphic
from foveal.runtime.upscaler import Upscaler


def limits(source, share):
    """By the definition, pixel by pixel: least and greatest values, widened."""
    around = np.pad(source.astype(np.float64), ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    low, high = np.empty(source.shape), np.empty(source.shape)
    for y, x in np.ndindex(source.shape[:2]):
        part = around[y : y + 5, x : x + 5]
        low[y, x], high[y, x] = part.min((0, 1)), part.max((0, 1))
    return low - share * (high - low), high + share * (high - low)


def around(source):
    return np.pad(source, ((REACH, REACH), (REACH, REACH), (0, 0)), mode="symmetric")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(("size", "scale", "channels"), [((1, 1), 4, 3), ((7, 9), 3, 1), ((12, 5), 2, 3)])
def test_results_stay_within_the_widened_range(dtype, size, scale, channels):
    rng = np.random.default_rng(0)
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    source = (rng.random((*size, channels)) * 0.3 * white + 0.3 * white).astype(dtype)
    wild = (rng.random((scale * size[0], scale * size[1], channels)) * white).astype(dtype)
    made = wild.copy()
    hold(made, around(source), scale, 0.5)
    low, high = (x.repeat(scale, 0).repeat(scale, 1) for x in limits(source, 0.5))
    step = 0 if dtype == np.float32 else 1  # half a level is rounded down
    np.testing.assert_allclose(made, np.clip(wild, low, high), atol=step if step else 1e-6)
    inside = (wild >= low + step) & (wild <= high - step)
    np.testing.assert_array_equal(made[inside], wild[inside])
    assert not inside.all()


def test_a_part_of_a_larger_array_is_held_too():
    rng = np.random.default_rng(0)
    source = rng.integers(90, 120, (6, 6, 3), np.uint8)
    band = rng.integers(0, 256, (12, 40, 3), np.uint8)
    whole = np.ascontiguousarray(band[:, 10:22])
    before = band.copy()
    hold(whole, around(source), 2, 0.5)
    hold(band[:, 10:22], around(source), 2, 0.5)
    np.testing.assert_array_equal(band[:, 10:22], whole)
    band[:, 10:22] = before[:, 10:22]
    np.testing.assert_array_equal(band, before)


def test_what_is_drawn_is_held_closer():
    source = np.full((12, 12, 1), 64, np.uint8)
    source[:, 6:] = 160
    made = np.full((24, 24, 1), 255, np.uint8)
    photo, drawn = made.copy(), made.copy()
    hold(photo, around(source), 2, 0.5)
    hold(drawn, around(source), 2, 0.5, graphic=True)
    assert photo.max() == 160 + 48
    assert drawn.max() == 160 + int(96 * GRAPHIC_SHARE)


def screenshot():
    picture = Image.new("RGB", (120, 90), (128, 128, 128))
    pen = ImageDraw.Draw(picture)
    for row in range(6):
        pen.text((4, 4 + 14 * row), "The quick brown fox", fill=(0, 0, 0))
    return np.asarray(picture)


def test_screenshots_are_graphics_and_photographs_are_not(natural):
    assert is_graphic(screenshot())
    assert is_graphic(np.tile(screenshot(), (6, 6, 1)))
    assert not is_graphic(natural(60, 70))
    for plain in (np.zeros((40, 40, 3), np.uint8), np.zeros((3, 3, 1), np.uint8)):
        assert not is_graphic(plain)


@pytest.mark.parametrize("quality", ["fast", "balanced"])
def test_text_has_no_wider_halo_than_bicubic_and_flat_parts_are_flat(quality):
    source = screenshot()
    made = Upscaler(4, quality, engine="onnxruntime", threads=1)(source).astype(int)
    bicubic = imresize(source, 4).astype(int)
    assert made.max() - 128 <= bicubic.max() - 128
    flat = limits(source, 0)
    same = (flat[0] == flat[1]).repeat(4, 0).repeat(4, 1)
    assert same.mean() > 0.2
    assert (made[same] == source.repeat(4, 0).repeat(4, 1)[same]).all()


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_alpha_and_one_bit_pictures_stay_clean(engine):
    from foveal.runtime.engines import why_not

    if reason := why_not(engine):
        pytest.skip(reason)
    upscale = Upscaler(2, "fast", engine=engine, threads=1)
    disc = np.hypot(*np.mgrid[-14:14, -14:14]) < 9
    line = np.where(disc, 0, 255).astype(np.uint8)
    low, high = limits(line[..., None], 0)
    same = (low == high)[..., 0].repeat(2, 0).repeat(2, 1)
    assert (upscale(line)[same] == line.repeat(2, 0).repeat(2, 1)[same]).all()
    sprite = np.dstack([np.full((28, 28), 200, np.uint8), 255 - line])
    made = upscale(sprite)
    assert (made[..., 1][same] == sprite[..., 1].repeat(2, 0).repeat(2, 1)[same]).all()
    assert (made[..., 0][made[..., 1] > 0] == 200).all()
