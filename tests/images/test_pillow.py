"""What Pillow reads: damage in our words, and inks as files of them are read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from foveal import images
from foveal.images._vips import vips
from foveal.images.pillow import plain


@pytest.mark.parametrize("with_profile", [False, True])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_inks_in_memory_are_as_those_in_a_file(tmp_path, suffix, with_profile):
    inks = np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8)
    options = {"icc_profile": bytes(vips().Image.profile_load("cmyk"))} if with_profile else {}
    Image.fromarray(inks, "CMYK").resize((24, 20)).save(tmp_path / f"a.{suffix}", **options)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        got = np.asarray(plain(image))
        others = np.asarray(image.convert("RGB"))
    want = images.read(tmp_path / f"a.{suffix}").frame().pixels
    np.testing.assert_array_equal(got, want)
    assert np.abs(others.astype(int) - want).mean() > 5, "else this shows nothing"


def test_other_modes_stay(tmp_path):
    image = Image.new("L", (2, 2))
    assert plain(image) is image


@pytest.mark.parametrize("error", [RuntimeError("Failed to decode frame 0"), KeyError(3), EOFError()])
def test_whatever_pillow_raises_is_damage(tmp_path, monkeypatch, error):
    frames = [Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=100)

    def fail(*_):
        raise error

    monkeypatch.setattr(AvifImagePlugin.AvifImageFile, "load", fail)
    with pytest.raises(
        images.PictureError, match=r"a\.avif: the file is damaged or truncated \(.*\); copy or download"
    ):
        images.read(tmp_path / "a.avif")
