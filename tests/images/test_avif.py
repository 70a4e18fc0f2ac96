"""The colours of AVIF files: read from the box or the stream, and put into files that libvips wrote."""

from __future__ import annotations

import numpy as np
import pytest
from picture_samples import smooth
from PIL import Image

from foveal.images import avif
from foveal.images._vips import vips
from foveal.images.cicp import Cicp


def save(path, *, deep=8, **options):
    pixels = smooth(16, 24, 3, np.uint16 if deep > 8 else np.uint8)
    image = vips().Image.new_from_array(pixels).copy(interpretation="rgb16" if deep > 8 else "srgb")
    image.heifsave(str(path), compression="av1", bitdepth=deep, effort=0, **options)
    return path


def pixels_of(path):
    return vips().Image.heifload_buffer(path.read_bytes()).numpy().copy()


@pytest.mark.parametrize("deep", [8, 10, 12])
@pytest.mark.parametrize("options", [{"Q": 90}, {"lossless": True}, {"Q": 80, "subsample_mode": "off"}])
def test_a_box_is_added_and_the_pixels_stay(tmp_path, deep, options):
    path = save(tmp_path / "a.avif", deep=deep, **options)
    assert (b"colrnclx" in path.read_bytes()) == ("lossless" in options), "else the stream's words are not tested"
    before, said = pixels_of(path), avif.colours(path)
    assert said == Cicp(1, 13, 0 if "lossless" in options else 6, 1), "what the stream says"
    avif.set_colours(path, Cicp(9, 16))
    assert avif.colours(path) == said._replace(primaries=9, transfer=16)
    np.testing.assert_array_equal(pixels_of(path), before)
    with Image.open(path) as image:  # a decoder of its own
        assert image.size == (24, 16)
        image.load()


def test_a_box_that_is_there_is_changed(tmp_path):
    Image.fromarray(smooth(16, 24, 3)).save(tmp_path / "a.avif")
    size = (tmp_path / "a.avif").stat().st_size
    for code in (Cicp(12, 13), Cicp(9, 18)):
        avif.set_colours(tmp_path / "a.avif", code)
        assert avif.colours(tmp_path / "a.avif")[:2] == code[:2]
    assert (tmp_path / "a.avif").stat().st_size == size


def test_exif_and_profile_move_along(tmp_path):
    from foveal import images
    from foveal.images import Metadata, Picture

    exif = Image.Exif()
    exif[0x0110] = "Model X"
    metadata = Metadata(exif=exif.tobytes()[6:], xmp=b"<x:xmpmeta/>", cicp=Cicp(12, 13), depth=10)
    images.write(tmp_path / "a.avif", Picture(smooth(16, 24, 3), False, metadata))
    again = images.read(tmp_path / "a.avif").metadata
    assert (again.xmp, again.cicp[:2]) == (b"<x:xmpmeta/>", (12, 13))
    with Image.open(tmp_path / "a.avif") as image:
        assert image.getexif()[0x0110] == "Model X"


@pytest.mark.parametrize("alpha", [False, True])
def test_transparent_pictures_have_a_second_one(tmp_path, alpha):
    pixels = smooth(16, 24, 4 if alpha else 3)
    vips().Image.new_from_array(pixels).copy(interpretation="srgb").heifsave(
        str(tmp_path / "a.avif"), compression="av1", effort=0
    )
    before = pixels_of(tmp_path / "a.avif")
    avif.set_colours(tmp_path / "a.avif", Cicp(12, 13))
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.avif"), before)
    assert avif.colours(tmp_path / "a.avif")[:2] == (12, 13)


@pytest.mark.parametrize("part", [0, 8, 30, 100, 200, 270])
def test_damaged_files_say_nothing(tmp_path, part):
    path = save(tmp_path / "a.avif")
    path.write_bytes(path.read_bytes()[:part])
    assert avif.colours(path) is None
    assert avif.colours(tmp_path / "none.avif") is None


def test_boxes_that_are_not_there(tmp_path):
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x10ftypavif\0\0\0\0")
    with pytest.raises(ValueError, match="no box meta in this AVIF"):
        avif.set_colours(tmp_path / "a.avif", Cicp(12, 13))
