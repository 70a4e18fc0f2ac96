"""Pictures through an Upscaler: what belongs to them, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal import images
from foveal.runtime.upscaler import Upscaler


@pytest.fixture
def upscale(bundles):
    return Upscaler(model=bundles["trims"], engine="onnxruntime", threads=1)


def test_an_animation_of_pil_says_that_it_is_one(upscale, tmp_path):
    frames = [Image.new("RGB", (6, 6), (i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    with Image.open(tmp_path / "a.gif") as image:
        with pytest.warns(UserWarning, match="holds 3 frames, and the first alone is enlarged; upscale_file"):
            upscale(image)
        image.seek(1)
        assert upscale(image).size == (12, 12), "whoever chose a frame means it"


def test_previews_behind_a_photograph_are_no_frames(upscale, tmp_path):
    frames = [Image.new("RGB", (6, 6), (i, 0, 0)) for i in range(2)]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.mpo") as image:
        assert image.n_frames == 2
        assert upscale(image).size == (12, 12)


def test_inks_are_converted_as_in_a_file(upscale, tmp_path):
    inks = np.random.default_rng(0).integers(0, 256, (6, 6, 4), np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        got = np.asarray(upscale(image))
    np.testing.assert_array_equal(got, upscale(tmp_path / "a.tif").pixels)


def test_what_a_file_does_not_keep_is_in_its_notes(upscale, tmp_path):
    Image.new("RGB", (6, 6)).save(tmp_path / "a.jpg", xmp=b"<x:xmpmeta/>")
    assert upscale.upscale_file(tmp_path / "a.jpg", tmp_path / "b.bmp").notes == ("XMP not kept",)
    assert upscale.upscale_file(tmp_path / "a.jpg", tmp_path / "b.png").notes == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_a_channel_of_no_kind_is_a_picture_of_its_own(upscale, tmp_path, channels, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 7, channels), dtype, endpoint=True)
    pixels[2:7, 2:5, -1] = 0
    kind = "rgb" if channels == 4 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, extrasamples=[0], planarconfig="contig")
    upscale.upscale_file(tmp_path / "a.tif", tmp_path / "b.tif")
    got = images.read(tmp_path / "b.tif").frame().pixels
    np.testing.assert_array_equal(got[..., :-1], upscale(np.ascontiguousarray(pixels[..., :-1])))
    np.testing.assert_array_equal(got[..., -1:], upscale(np.ascontiguousarray(pixels[..., -1:])))


def test_a_plan_counts_what_the_encoder_needs(upscale):
    still = upscale.plan((400, 300), file_format="png").memory
    whole = upscale.plan((400, 300), file_format="webp").memory
    assert whole - still == 2 * 800 * 600 * 3
