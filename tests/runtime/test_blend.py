from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from foveal.runtime.blend import ramp
from foveal.runtime.engines import EngineMemoryError
from foveal.runtime.tiles import cut, make_grid
from foveal.runtime.upscaler import Upscaler


def make(bundle, **options):
    return Upscaler(model=bundle, engine="onnxruntime", threads=1, **options)


def test_weights_by_hand():
    np.testing.assert_allclose(ramp(0, 12, 12, 2, 1), np.ones(12))
    np.testing.assert_allclose(ramp(0, 4, 12, 2, 1), [1, 1, 0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(ramp(4, 8, 12, 2, 1), [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(ramp(8, 12, 12, 1, 2), [0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1, 1, 1])


def by_definition(image, grid, scale, share):
    """The blend of y = (1 - share)·x + share·mean(x), tile by tile and pixel by pixel, in float64."""
    m, (height, width) = grid.margin, image.shape[:2]
    sums, weights = np.zeros((scale * height, scale * width, 3)), np.zeros((scale * height, scale * width, 1))
    top = 0
    while top < height:
        bottom, pieces = grid.band(top)
        for piece in pieces:
            x = np.empty((*grid.side, 3))
            cut(image, piece.top - m, piece.left - m, x)
            y = ((1 - share) * x + share * x.mean(axis=(0, 1))).repeat(scale, 0).repeat(scale, 1)
            rows = piece.top + piece.rows[0], piece.top + piece.rows[1]
            columns = piece.left + piece.columns[0], piece.left + piece.columns[1]
            for i in range(scale * max(0, rows[0] - m), scale * min(height, rows[1] + m)):
                for j in range(scale * max(0, columns[0] - m), scale * min(width, columns[1] + m)):
                    weight = 1.0
                    for at, (first, last), length in ((i, rows, height), (j, columns, width)):
                        before = at - scale * max(0, first - m) + 0.5 if first > 0 else np.inf
                        after = scale * min(length, last + m) - at - 0.5 if last < length else np.inf
                        weight *= min(1, before / (2 * m * scale), after / (2 * m * scale))
                    sums[i, j] += weight * y[i - scale * (piece.top - m), j - scale * (piece.left - m)]
                    weights[i, j] += weight
        top = bottom
    return sums / weights


@pytest.mark.parametrize(
    ("scale", "size", "tile", "options"),
    [
        (1, (23, 19), 8, {}),
        (2, (9, 21), 5, {"margin": 3}),
        (1, (17, 30), 8, {"multiple": 4, "margin": 3}),
        (1, (20, 13), 3, {"margin": 5}),
        (1, (7, 9), 16, {"minimum": 40}),
    ],
)
def test_tiles_are_blended_by_the_definition(scale, size, tile, options, whole_picture, natural):
    upscale = make(whole_picture(scale=scale, **options), tile=tile)
    image = natural(*size).astype(np.float32) / 255
    got = upscale(image)
    grid = make_grid(*size, tile, upscale.card, pixel_bytes=12)
    assert grid.tiles == 1 if options.get("minimum") else grid.tiles > 3
    np.testing.assert_allclose(got, by_definition(image, grid, scale, 0.5), atol=1e-5)
    assert abs(upscale((image * 255).round().astype(np.uint8)) - got * 255).max() <= 0.51


def test_no_seam_where_a_cut_shows_one(whole_picture):
    image = np.zeros((64, 64, 3), np.float32)
    image[:, 32:] = 1
    cards = whole_picture(share=1.0, margin=8)
    blended = make(cards, tile=16)(image)
    cut_hard = make(replace(cards, card=replace(cards.card, tiling="exact")), tile=16)(image)
    jump = abs(np.diff(cut_hard, axis=1)).max()
    assert jump > 0.4
    # Over 2·margin pixels.
    assert abs(np.diff(blended, axis=1)).max() <= jump / 16 + 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1, 2])
def test_weights_sum_to_one_for_every_kind_of_pixel(scale, channels, dtype, whole_picture, natural):
    white = 1.0 if dtype == np.float64 else np.iinfo(dtype).max
    image = np.dstack([natural(35, 29), natural(35, 29, 1)])[..., :channels]
    if channels in (2, 4):
        image[:10, :, -1] = 255
        image[20:, :, -1] = 0
    image = (image / 255 * white).astype(dtype)
    same = make(whole_picture(scale=scale, share=0.0), tile=7)(image)
    wanted = image.repeat(scale, 0).repeat(scale, 1)
    assert (same.shape, same.dtype) == (wanted.shape, wanted.dtype)
    if channels in (2, 4):
        np.testing.assert_array_equal(same[: 10 * scale, :, -1], wanted[: 10 * scale, :, -1])
        # Behind transparent pixels is what was there.
        np.testing.assert_allclose(same[20 * scale :], wanted[20 * scale :], atol=1e-6 * white)
    np.testing.assert_allclose(same.astype(float), wanted, atol=2e-5 * white if white != 255 else 0.5)


def test_colours_behind_transparent_pixels_do_not_leak(whole_picture, natural):
    image = np.dstack([natural(30, 30), np.zeros((30, 30), np.uint8)])
    image[8:20, 8:20, 3] = 200
    other = image.copy()
    other[image[..., 3] == 0, :3] = 77
    upscale = make(whole_picture(), tile=7)
    one, two = upscale(image), upscale(other)
    shown = one[..., 3] > 0
    assert shown.any()
    np.testing.assert_array_equal(one[shown], two[shown])


def test_running_out_of_memory_goes_on_with_smaller_tiles(whole_picture, natural):
    class Starved:
        name, threads = "starved", 1

        def __init__(self, engine):
            self.engine, self.heights = engine, []

        def run(self, x):
            if len(self.heights) > 2 and x.shape[2] > 30:
                raise EngineMemoryError("no")
            self.heights.append(x.shape[2])
            return self.engine.run(x)

    upscale = make(whole_picture(share=0.0), tile=32)
    opened = upscale._network._open
    upscale._network._open = lambda kind: Starved(opened(kind))
    image = natural(150, 40)
    np.testing.assert_array_equal(upscale(image), image)
    heights = upscale._network._engines["float"].heights
    assert min(heights[:3]) > 30
    assert max(heights[3:]) <= 30


def test_progress_and_files_of_overlapping_tiles(whole_picture, natural, tmp_path):
    image = natural(50, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    upscale = make(whole_picture(scale=2, margin=6), tile=9)
    covered = np.zeros((100, 80), int)

    def progress(done, total, region):
        left, top, right, bottom = region
        covered[top:bottom, left:right] += 1

    upscale.upscale_file(tmp_path / "a.png", tmp_path / "b.png", progress=progress)
    assert (covered == 1).all()
    with Image.open(tmp_path / "b.png") as written:
        np.testing.assert_array_equal(np.asarray(written), upscale(image))
