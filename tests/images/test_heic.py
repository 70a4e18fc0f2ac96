"""HEIC pictures, made by the library that reads them."""

from __future__ import annotations

import numpy as np
import pytest
from picture_samples import XMP, camera, display_p3, smooth
from PIL import Image

from foveal import images
from foveal.images import exif
from foveal.images.cicp import Cicp

heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (the extra heic)")


def saved(path, pixels, mode, **options):
    high, wide = pixels.shape[:2]
    made = heif.from_bytes(mode, (wide, high), np.ascontiguousarray(pixels).tobytes())
    made.save(path, quality=98, chroma="444", **options)
    return path


@pytest.mark.parametrize(("height", "width", "channels"), [(9, 11, 1), (32, 45, 3), (7, 64, 4)])
def test_pixels_come_back(tmp_path, height, width, channels):
    pixels = smooth(height, width, channels)
    path = saved(tmp_path / "a.heic", pixels, {1: "L", 3: "RGB", 4: "RGBA"}[channels])
    info, picture = images.probe(path), images.read(path).frame()
    assert (info.width, info.height, info.channels, info.bits, info.format) == (width, height, channels, 8, "heic")
    assert picture.alpha == (channels == 4)
    assert picture.pixels.dtype == np.uint8
    assert np.abs(picture.pixels.astype(int) - pixels).mean() < 1.5


def test_ten_bits_stay_and_white_is_white(tmp_path):
    pixels = smooth(16, 24, 3, np.uint16)
    pixels[:4, :4] = 65535
    path = saved(tmp_path / "a.heic", pixels, "RGB;16")
    reading = images.read(path)
    assert (reading.info.bits, reading.metadata.depth) == (16, 10)
    made = reading.frame().pixels
    assert made[0, 0].tolist() == [65535] * 3
    assert np.abs(made.astype(int) - pixels).mean() < 200
    images.write(tmp_path / "a.png", reading.frame())
    assert (images.read(tmp_path / "a.png").frame().pixels == made).all()


def test_profile_and_camera_data_are_kept_and_it_is_upright_once(tmp_path):
    wide = smooth(20, 30, 3)
    made = heif.from_pillow(Image.fromarray(wide))
    path = tmp_path / "a.heic"
    made.save(path, quality=98, chroma="444", exif=camera(6, 30, 20), icc_profile=display_p3(), xmp=XMP)
    reading = images.read(path)
    assert (reading.width, reading.height) == (20, 30)
    upright = np.rot90(wide, -1)
    assert np.abs(reading.frame().pixels.astype(int) - upright).mean() < 1.5
    assert reading.metadata.icc == display_p3()
    assert exif.orientation(reading.metadata.exif) == 1
    assert b'tiff:Orientation="1"' in reading.metadata.xmp
    assert reading.metadata.left_out == ()
    with images.writer_for(reading, tmp_path / "b.jpg", 1) as writer:
        writer.rows(reading.frame().pixels)
    again = images.read(tmp_path / "b.jpg").metadata
    assert again.icc == display_p3()
    assert exif.orientation(again.exif) == 1


def test_colours_without_a_profile(tmp_path):
    named = {"color_primaries": 12, "transfer_characteristics": 13, "matrix_coefficients": 6, "full_range_flag": 1}
    path = saved(tmp_path / "a.heic", smooth(8, 8, 3), "RGB", **named)
    assert images.read(path).metadata.cicp == Cicp(12, 13, 0, 1)
    assert images.read(saved(tmp_path / "b.heic", smooth(8, 8, 3), "RGB")).metadata.cicp is None


def test_other_pictures_and_data_are_named(tmp_path):
    both = heif.from_pillow(Image.fromarray(smooth(9, 11, 3)))
    both.add_from_pillow(Image.fromarray(smooth(5, 7, 3)))
    both.save(tmp_path / "a.heic")
    reading = images.read(tmp_path / "a.heic")
    assert (reading.width, reading.height) == (11, 9)
    assert images.foresee(tmp_path / "a.heic", tmp_path / "a.png", 2) == ("1 further picture not kept",)


class Shown:
    """A picture as pillow-heif shows one from a phone; it writes none such."""

    mode, size, premultiplied_alpha = "RGBa", (2, 1), True
    __array_interface__ = np.array([[[64, 32, 0, 128], [9, 9, 9, 0]]], np.uint8).__array_interface__

    def __init__(self):
        self.pixels = np.array([[[64, 32, 0, 128], [9, 9, 9, 0]]], np.uint8)
        self.__array_interface__ = self.pixels.__array_interface__
        kinds = ("urn:com:apple:photo:2020:aux:hdrgainmap", "urn:com:apple:photo:2018:aux:portraiteffectsmatte",
                 "urn:com:apple:photo:2023:aux:stylemap")  # fmt: skip
        self.info = {
            "bit_depth": 8,
            "exif": b"",
            "depth_images": [object()],
            "aux": {kind: [1] for kind in kinds},
            "content_light_level": {},
            "metadata": [{"type": "mime", "content_type": "application/ld+json"}],
        }


def test_what_a_phone_puts_beside_a_picture_is_named(tmp_path, monkeypatch):
    from types import SimpleNamespace

    class File(list):
        primary_index = 0

    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyphevc" + bytes(8))
    monkeypatch.setattr(
        "foveal.images.heic.needed", lambda *_: SimpleNamespace(open_heif=lambda *a, **k: File([Shown()]))
    )
    reading = images.read(tmp_path / "a.heic")
    assert reading.metadata.left_out == (
        "depth map",
        "gain map",
        "portrait matte",
        "auxiliary picture (stylemap)",
        "HDR metadata (light levels)",
        "image sequence",
        "metadata of type application/ld+json",
    )
    assert reading.frame().pixels.tolist() == [[[128, 64, 0, 128], [0, 0, 0, 0]]]


@pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_an_error(tmp_path, part):
    path = saved(tmp_path / "a.heic", smooth(32, 45, 3), "RGB")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(images.PictureError, match=r"a\.heic: the file is damaged or truncated \(.*copy or download"):
        images.read(path)


def test_limits_count_before_decoding(tmp_path):
    path = saved(tmp_path / "a.heic", smooth(32, 45, 3), "RGB")
    with pytest.raises(images.PictureError, match="its header promises 45 × 32 = "):
        images.read(path, limit_pixels=1000)


def test_pixels_that_are_not_those_of_the_header(tmp_path):
    from foveal.images import heic

    path = saved(tmp_path / "a.heic", smooth(8, 8, 3), "RGB")
    with pytest.raises(images.PictureError, match="its header promises 9 × 8, its pixels are 8 × 8"):
        heic.pixels(path, images.Info(9, 8, 3, 8, 1, "heic"))


def test_what_the_decoder_does_not_support_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Unsupported feature: Unsupported codec")

    path = saved(tmp_path / "a.heic", smooth(8, 8, 3), "RGB")
    monkeypatch.setattr(heif, "open_heif", refuse)
    with pytest.raises(
        images.PictureError, match=r"foveal cannot decode \(Unsupported feature.*save it as PNG or TIFF"
    ):
        images.read(path)
