"""Reading: every kind of pixels of every format, orientation, colour, animation, and files that must be refused."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from picture_samples import XMP, camera, display_p3, smooth, to_srgb
from PIL import Image, ImageCms

from foveal import images
from foveal.images._vips import vips

FORMATS = {"png": {}, "jpeg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}, "tiff": {},
           "avif": {"quality": 98, "subsampling": "4:4:4"}, "gif": {}, "bmp": {}}  # fmt: skip


def saved(path, pixels, **options):
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(path, **options)
    return path


def pixels_of(path):
    return images.read(path).frame(0).pixels


# ---- kinds of pixels


@pytest.mark.parametrize("format_", FORMATS)
def test_colour_comes_as_it_was_saved(tmp_path, format_):
    path = saved(tmp_path / f"a.{format_}", smooth(31, 45, 3), **FORMATS[format_])
    reading = images.read(path)
    picture = reading.frame()
    tolerance = {"jpeg": 4, "avif": 4, "gif": 40}.get(format_, 0)
    assert picture.pixels.shape == (31, 45, 3)
    assert np.abs(picture.pixels.astype(int) - smooth(31, 45, 3)).max() <= tolerance
    assert not picture.alpha
    assert (reading.width, reading.height, reading.channels, reading.frames) == (45, 31, 3, 1)
    assert reading.metadata.format == format_ == reading.info.format
    assert images.probe(path) == images.Info(45, 31, 3, 8, 1, format_)


@pytest.mark.parametrize("format_", ["png", "jpeg", "tiff", "bmp"])
def test_grey_stays_grey(tmp_path, format_):
    path = saved(tmp_path / f"a.{format_}", smooth(9, 11, 1), **FORMATS[format_])
    assert pixels_of(path).shape == (9, 11, 1)
    assert np.abs(pixels_of(path).astype(int) - smooth(9, 11, 1)).max() <= 2
    assert images.probe(path).channels == 1


@pytest.mark.parametrize("format_", ["png", "webp", "tiff", "avif"])
def test_alpha_is_straight_and_kept(tmp_path, format_):
    pixels = smooth(20, 30, 4)
    pixels[:, :9, 3] = 0
    options = {"exact": True} if format_ == "webp" else {}
    picture = images.read(saved(tmp_path / f"a.{format_}", pixels, **FORMATS[format_], **options)).frame()
    assert picture.alpha
    assert np.abs(picture.pixels.astype(int) - pixels).max() <= (6 if format_ == "avif" else 0)


@pytest.mark.parametrize("format_", ["png", "tiff"])
def test_grey_and_alpha(tmp_path, format_):
    picture = images.read(saved(tmp_path / f"a.{format_}", smooth(5, 7, 2))).frame()
    assert picture.alpha
    np.testing.assert_array_equal(picture.pixels, smooth(5, 7, 2))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format_", ["png", "tiff"])
def test_16_bits(tmp_path, format_, channels):
    pixels = smooth(13, 17, channels, np.uint16) + np.arange(17, dtype=np.uint16)[None, :, None]
    image = vips().Image.new_from_array(pixels if channels > 1 else pixels[..., 0])
    image.copy(interpretation="rgb16" if channels > 2 else "grey16").write_to_file(str(tmp_path / f"a.{format_}"))
    reading = images.read(tmp_path / f"a.{format_}")
    assert reading.metadata.bits == reading.info.bits == 16
    assert reading.frame().pixels.dtype == np.uint16
    np.testing.assert_array_equal(reading.frame().pixels, pixels)


@pytest.mark.parametrize("depth", [10, 12])
def test_deep_avif_reaches_full_white(tmp_path, depth):
    white = np.full((16, 16, 3), 65535, np.uint16)
    image = vips().Image.new_from_array(white).copy(interpretation="rgb16")
    image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=depth, lossless=True)
    reading = images.read(tmp_path / "a.avif")
    assert reading.metadata.depth == depth
    np.testing.assert_array_equal(reading.frame().pixels, white)


@pytest.mark.parametrize("format_", ["png", "tiff", "bmp"])
def test_bilevel_becomes_8_bit_grey(tmp_path, format_):
    bits = np.random.default_rng(0).random((9, 13)) > 0.5
    Image.fromarray(bits).save(tmp_path / f"a.{format_}")
    reading = images.read(tmp_path / f"a.{format_}")
    np.testing.assert_array_equal(reading.frame().pixels, (bits * 255)[..., None])
    assert reading.metadata.origin == "bilevel"


@pytest.mark.parametrize("format_", ["png", "tiff", "gif", "bmp"])
def test_palettes_become_colour(tmp_path, format_):
    image = Image.fromarray(smooth(20, 20, 3)).quantize(16)
    image.save(tmp_path / f"a.{format_}")
    np.testing.assert_array_equal(pixels_of(tmp_path / f"a.{format_}"), np.asarray(image.convert("RGB")))


def test_a_transparent_palette_entry_becomes_alpha(tmp_path):
    image = Image.fromarray(smooth(20, 20, 3)).quantize(16)
    image.save(tmp_path / "a.png", transparency=3)
    pixels = pixels_of(tmp_path / "a.png")
    assert pixels.shape[2] == 4
    np.testing.assert_array_equal(pixels[..., 3] == 0, np.asarray(image) == 3)


def test_associated_alpha_of_tiff_is_divided_out(tmp_path):
    pixels = np.full((4, 4, 4), 50, np.uint8)
    pixels[..., 3] = 100
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(pixels_of(tmp_path / "a.tif")[0, 0].astype(int) - (127, 127, 127, 100)).max() <= 1


@pytest.mark.parametrize("format_", ["jpeg", "tiff"])
def test_cmyk_without_a_profile_becomes_srgb(tmp_path, format_):
    inks = np.zeros((8, 24, 4), np.uint8)
    inks[:, 8:16] = (0, 255, 255, 0)  # magenta and yellow make red
    inks[:, 16:] = (0, 0, 0, 255)
    Image.fromarray(inks, "CMYK").save(tmp_path / f"a.{format_}", **FORMATS[format_])
    reading = images.read(tmp_path / f"a.{format_}")
    white, red, black = reading.frame().pixels[4, [3, 11, 20]].astype(int)
    assert white.min() >= 250
    assert red[0] > 180
    assert red[1:].max() < 80
    assert black.max() < 60
    assert reading.metadata.origin == "cmyk"
    assert ImageCms.ImageCmsProfile(io.BytesIO(reading.metadata.icc)).profile.xcolor_space.strip() == "RGB"


def test_cmyk_goes_through_its_own_profile(tmp_path):
    profile = vips().Image.profile_load("cmyk")
    inks = np.full((8, 8, 4), (40, 90, 160, 10), np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif", icc_profile=bytes(profile))
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    want = ImageCms.profileToProfile(Image.fromarray(inks, "CMYK"), own, ImageCms.createProfile("sRGB"),
                                     renderingIntent=1, outputMode="RGB", flags=flags)  # fmt: skip
    assert np.abs(pixels_of(tmp_path / "a.tif").astype(int) - np.asarray(want)).max() <= 2


def test_lab_becomes_srgb(tmp_path):
    lab = vips().Image.new_from_array(np.full((4, 4, 3), (50, 0, 0), np.float32)).copy(interpretation="lab")
    lab.tiffsave(str(tmp_path / "a.tif"))
    reading = images.read(tmp_path / "a.tif")
    assert reading.frame().pixels.shape == (4, 4, 3)
    assert np.abs(reading.frame().pixels.astype(int) - 119).max() <= 1
    assert reading.metadata.origin == "lab"


# ---- what belongs to a picture


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "tiff", "avif"])
def test_profile_values_and_all(tmp_path, format_):
    profile = display_p3()
    path = saved(tmp_path / f"a.{format_}", smooth(16, 24, 3), icc_profile=profile, **FORMATS[format_])
    reading = images.read(path)
    assert reading.metadata.icc == profile
    assert np.abs(reading.frame().pixels.astype(int) - smooth(16, 24, 3)).max() <= 4
    looks = to_srgb(reading.frame().pixels, reading.metadata.icc)
    assert np.abs(looks.astype(int) - to_srgb(smooth(16, 24, 3), profile)).max() <= (16 if format_ == "avif" else 12)
    assert np.abs(looks.astype(int) - smooth(16, 24, 3)).max() > 12, (
        "the profile must matter for this test to mean much"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "tiff"])
def test_orientation(tmp_path, format_, orientation):
    pixels = smooth(12, 20, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{format_}", pixels, exif=exif, **FORMATS[format_])
    # The reference: where the standard says that the first stored row and column belong.
    want = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    reading = images.read(path)
    got = reading.frame().pixels
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= (4 if format_ == "jpeg" else 0)
    assert (reading.width, reading.height) == (images.probe(path).width, images.probe(path).height) == want.shape[1::-1]
    assert got.flags.c_contiguous
    if reading.metadata.exif:
        again = Image.Exif()
        again.load(reading.metadata.exif)
        assert again.get(0x0112, 1) == 1


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_orientation_of_avif(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.avif", smooth(16, 24, 3), exif=exif, **FORMATS["avif"])
    with Image.open(path) as image:
        from PIL import ImageOps

        want = np.asarray(ImageOps.exif_transpose(image))
    assert np.abs(pixels_of(path).astype(int) - want).max() <= 4


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "tiff", "avif"])
def test_camera_data_xmp_and_resolution(tmp_path, format_):
    exif = Image.Exif()
    exif.load(camera(1, 24, 16))
    extra = {} if format_ == "png" else {"xmp": XMP}
    options = FORMATS[format_] | extra | {"exif": camera(1, 24, 16) if format_ != "tiff" else exif, "dpi": (300, 150)}
    metadata = images.read(saved(tmp_path / f"a.{format_}", smooth(16, 24, 3), **options)).metadata
    read = Image.Exif()
    read.load(metadata.exif)
    assert read[0x0110] == "Model X"
    if format_ != "tiff":  # Pillow writes no sub-directories of TIFF from loaded EXIF
        assert read.get_ifd(0x8769)[0x927C] == b"MakerNote" * 9
        assert read.get_ifd(0x8825)[2] == (48.0, 12.0, 30.5)
    if format_ in ("png", "jpeg", "tiff"):
        assert metadata.dpi == pytest.approx((300, 150), abs=0.02)
    if format_ not in ("png", "tiff"):
        assert b'tiff:Orientation="1"' in metadata.xmp


def test_png_texts(tmp_path):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "A kingfisher")
    info.add_text("Author", "Zoë")
    path = saved(tmp_path / "a.png", smooth(4, 4, 3), pnginfo=info)
    assert images.read(path).metadata.comments == (("Title", "A kingfisher"), ("Author", "Zoë"))


def test_profile_of_a_version_5_bmp(tmp_path):
    profile = display_p3()
    path = saved(tmp_path / "a.bmp", smooth(6, 8, 3))
    data = path.read_bytes()
    pixels, info = data[54:], bytearray(data[14:54].ljust(124, b"\0"))
    struct.pack_into("<I", info, 0, 124)
    info[56:60] = b"DEBM"
    struct.pack_into("<II", info, 112, 124 + len(pixels), len(profile))
    head = struct.pack("<2sIHHI", b"BM", 138 + len(pixels) + len(profile), 0, 0, 138)
    path.write_bytes(head + bytes(info) + pixels + profile)
    reading = images.read(path)
    assert reading.metadata.icc == profile
    np.testing.assert_array_equal(reading.frame().pixels, smooth(6, 8, 3))


def test_lossless_webp_is_known(tmp_path):
    for lossless in (True, False):
        path = saved(tmp_path / f"{lossless}.webp", smooth(16, 16, 3), lossless=lossless)
        assert images.read(path).metadata.lossless is lossless


# ---- several frames


def moving(count=4):
    frames = []
    for i in range(count):
        frame = np.zeros((20, 30, 4), np.uint8)
        frame[4 + i : 10 + i, 5:15] = (200, 30 * i, 10, 255)
        frames.append(frame)
    return frames


@pytest.mark.parametrize(("format_", "loop", "plays"), [
    ("gif", None, 1), ("gif", 0, 0), ("gif", 2, 3), ("webp", 0, 0), ("webp", 3, 3), ("png", 0, 0), ("png", 3, 3),
])  # fmt: skip
def test_animation(tmp_path, format_, loop, plays):
    frames = moving()
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"disposal": 2} if format_ == "gif" else {"lossless": True} if format_ == "webp" else {}
    if loop is not None:
        options["loop"] = loop
    first.save(tmp_path / f"a.{format_}", save_all=True, append_images=others, duration=[50, 70, 120, 300], **options)
    reading = images.read(tmp_path / f"a.{format_}")
    assert reading.frames == images.probe(tmp_path / f"a.{format_}").frames == 4
    assert reading.metadata.durations == (50, 70, 120, 300)
    assert reading.metadata.loop == plays
    for i in (0, 1, 2, 3, 1, 0):  # forwards, and back again
        picture = reading.frame(i)
        assert picture.alpha
        np.testing.assert_array_equal(picture.pixels[..., 3], frames[i][..., 3])
        visible = frames[i][..., 3] > 0
        np.testing.assert_array_equal(picture.pixels[visible], frames[i][visible])


def test_animated_avif(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=[100, 200, 300], quality=95)
    reading = images.read(tmp_path / "a.avif")
    assert reading.metadata.durations == (100, 200, 300)
    assert [int(reading.frame(i).pixels.mean().round() / 20) for i in range(3)] == [0, 3, 6]


def test_frames_that_hold_only_what_changed_are_completed(tmp_path):
    frames = [np.full((40, 40, 3), 200, np.uint8) for _ in range(3)]
    for i in (1, 2):
        frames[i][5:9, 5 * i : 5 * i + 4] = (10, 20, 30)
    first, *others = (Image.fromarray(frame).quantize(8) for frame in frames)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100)
    reading = images.read(tmp_path / "a.gif")
    for i in range(3):
        np.testing.assert_array_equal(reading.frame(i).pixels[..., :3], frames[i])


def test_pages_of_a_document(tmp_path):
    pages = [smooth(8, 9, 3), smooth(8, 9, 3)[::-1]]
    tifffile.imwrite(tmp_path / "a.tif", np.stack(pages), photometric="rgb")
    reading = images.read(tmp_path / "a.tif")
    assert (reading.frames, reading.metadata.durations, reading.metadata.left_out) == (2, (), ())
    for i in range(2):
        np.testing.assert_array_equal(reading.frame(i).pixels, pages[i])


def test_pages_of_different_sizes_and_kinds_are_pages_all_the_same(tmp_path):
    pages = [smooth(8, 9, 3), smooth(4, 5, 3), smooth(8, 9, 1, np.uint16), smooth(3, 4, 4)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            options = {"photometric": "rgb"} if page.shape[2] > 1 else {}
            more = {"extrasamples": ["unassalpha"]} if page.shape[2] == 4 else {}
            file.write(page if page.shape[2] > 1 else page[..., 0], **options, **more)
    reading = images.read(tmp_path / "a.tif")
    assert (reading.frames, reading.metadata.left_out) == (4, ())
    assert [(page.width, page.height, page.channels, page.bits) for page in reading.info.pages] == [
        (9, 8, 3, 8),
        (5, 4, 3, 8),
        (9, 8, 1, 16),
        (4, 3, 4, 8),
    ]
    assert reading.info.total_pixels == 9 * 8 * 2 + 5 * 4 + 4 * 3
    for i, page in enumerate(pages):
        np.testing.assert_array_equal(reading.frame(i).pixels, page)
        assert reading.frame(i).metadata.bits == (16 if page.dtype == np.uint16 else 8)


def test_a_page_may_be_turned_on_its_own(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for turn in (1, 6):
            file.write(smooth(8, 9, 3), photometric="rgb", extratags=[(274, 3, 1, turn, False)])
    reading = images.read(tmp_path / "a.tif")
    assert [(page.width, page.height) for page in reading.info.pages] == [(9, 8), (8, 9)]
    np.testing.assert_array_equal(reading.frame(1).pixels, smooth(8, 9, 3)[::-1].transpose(1, 0, 2))


def test_thumbnails_among_the_pages_are_left_out_and_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(smooth(8, 9, 3), photometric="rgb")
        file.write(smooth(4, 4, 3), photometric="rgb", subfiletype=1)
        file.write(smooth(8, 9, 3)[::-1], photometric="rgb")
    reading = images.read(tmp_path / "a.tif")
    assert reading.metadata.left_out == ("1 reduced page (thumbnails or masks)",)
    assert reading.frames == 2
    np.testing.assert_array_equal(reading.frame(1).pixels, smooth(8, 9, 3)[::-1])


@pytest.mark.parametrize(("name", "photometric", "bits"), [("cielab", 8, 8), ("icclab", 9, 8), ("icclab", 9, 16)])
def test_lab_that_libvips_does_not_read(tmp_path, name, photometric, bits):
    """A grey of L* 50, a red (53, 80, 67) and a blue (32, 79, −108), the primaries of sRGB in Lab with white D65."""
    lab = np.array([[[53.59, 0, 0], [53.24, 80.09, 67.2], [32.3, 79.19, -107.86]]])
    if photometric == 8:
        stored = (lab * (255 / 100, 1, 1)).round().astype(np.int16).astype(np.uint8)
    elif bits == 8:
        stored = (lab * (255 / 100, 1, 1) + (0, 128, 128)).round().astype(np.uint8)
    else:
        stored = ((lab * (255 / 100, 1, 1) + (0, 128, 128)) * 256).round().astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored.repeat(4, 0), photometric=name)
    reading = images.read(tmp_path / "a.tif")
    assert (reading.metadata.origin, reading.metadata.bits) == ("lab", bits)
    got = reading.frame().pixels[0].astype(int) // (257 if bits == 16 else 1)
    assert np.abs(got - [(128, 128, 128), (255, 0, 0), (0, 0, 255)]).max() <= 4


@pytest.mark.parametrize("compression", [34887, 34925, 50000, 34712])
def test_what_cannot_be_decoded_is_not_called_damaged(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", smooth(16, 16, 3), photometric="rgb")
    set_tag(tmp_path / "a.tif", 259, compression)
    refused(tmp_path / "a.tif", r"of a kind that foveal cannot decode \(.*\); save it as a plain PNG or TIFF")


def test_colours_that_would_pass_for_rgb_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", smooth(16, 16, 3), photometric="rgb")
    set_tag(tmp_path / "a.tif", 262, 10)  # ITULAB
    refused(tmp_path / "a.tif", "its colour space is multiband; foveal reads grey, RGB, .*convert it to RGB")


def set_tag(path, tag, value):
    """Change a short value in a TIFF's first directory."""
    from foveal.images.tiff import Tiff

    data = bytearray(path.read_bytes())
    tiff = Tiff(data)
    for entry in tiff.entries(tiff.first):
        if entry.tag == tag:
            struct.pack_into(tiff.order + "H", data, entry.where, value)
    path.write_bytes(data)


@pytest.mark.parametrize("channels", [2, 4])
def test_an_unspecified_channel_is_no_transparency(tmp_path, channels):
    pixels = smooth(8, 9, channels)
    kind = "rgb" if channels == 4 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, extrasamples=[0], planarconfig="contig")
    picture = images.read(tmp_path / "a.tif").frame()
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert (picture.alpha, picture.metadata.spare) == (False, True)
    images.write(tmp_path / "b.tif", picture)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].extrasamples == (0,)
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.tif"), pixels)
    with images.Writer(tmp_path / "b.png", 9, 8, channels, picture.metadata) as writer:
        writer.rows(pixels)
    name = "fourth" if channels == 4 else "second"
    assert writer.left_out == (f"{name} channel not kept",)
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.png"), pixels[..., :-1])


def test_names_that_are_no_utf_8(tmp_path):
    import os

    path = saved(tmp_path / "a.png", smooth(8, 9, 3)).rename(tmp_path / os.fsdecode(b"Z\xfcri.png"))
    for suffix in (b"png", b"jpg", b"tif", b"webp", b"avif", b"gif", b"bmp"):
        target = tmp_path / os.fsdecode(b"\xe9." + suffix)
        images.write(target, images.read(path).frame())
        assert images.read(target).width == 9


@pytest.mark.parametrize("call", [images.read, images.probe])
def test_a_pipe_is_not_waited_for(tmp_path, call):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(images.PictureError, match="it is a pipe or a device, not a file; save the picture to a file"):
        call(tmp_path / "a.png")


def test_there_is_no_such_frame(tmp_path):
    reading = images.read(saved(tmp_path / "a.png", smooth(4, 4, 3)))
    with pytest.raises(IndexError, match=r"frame must be in 0…0 for .*a\.png, got 1"):
        reading.frame(1)


# ---- files that must be refused


def refused(path, text, **options):
    with pytest.raises(images.PictureError, match=text) as caught:
        images.read(path, **options)
    assert str(path) in str(caught.value)
    assert caught.value.path == path


@pytest.mark.parametrize("call", [images.read, images.probe])
def test_missing_folder_empty_and_strange(tmp_path, call):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture at all, but a text of some length")
    for name, text in (
        ("none.png", "there is no such file; check the name"),
        ("", "it is a folder, not a picture; name a file in it"),
        ("empty.png", r"the file is empty \(zero bytes\); copy or download it again"),
        ("text.jpg", "it is not a picture that foveal reads; give one of PNG, JPEG, WebP, TIFF, AVIF, GIF, BMP"),
    ):
        with pytest.raises(images.PictureError, match=text):
            call(tmp_path / name)


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    from pathlib import Path

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    refused(tmp_path / "a.png", r"it cannot be opened \(Permission denied\); check that you may read it")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("format_", FORMATS)
def test_truncated_files_are_errors(tmp_path, capfd, format_, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    options = {"compression": "tiff_lzw"} if format_ == "tiff" and part < 0.5 else FORMATS[format_]
    path = saved(tmp_path / f"a.{format_}", noise, **options)
    path.write_bytes(path.read_bytes()[: max(40, int(path.stat().st_size * part))])
    refused(path, "is damaged or truncated|is not a picture")
    assert capfd.readouterr() == ("", "")


def test_a_truncated_progressive_jpeg_is_an_error(tmp_path):
    path = saved(tmp_path / "a.jpg", smooth(64, 64, 3), progressive=True)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, r"is damaged or truncated \(.*\); copy or download it again")


@pytest.mark.parametrize("format_", ["gif", "webp", "png"])
def test_a_truncated_animation_is_an_error(tmp_path, format_):
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    first, *others = (Image.fromarray(frame) for frame in noise)
    path = tmp_path / f"a.{format_}"
    first.save(path, save_all=True, append_images=others, duration=100)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])

    def all_frames():
        reading = images.read(path)
        return [reading.frame(i) for i in range(reading.frames)]

    with pytest.raises(images.PictureError, match="is damaged or truncated"):
        all_frames()


def _bomb_png(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def _bomb(format_, side):
    if format_ == "png":
        return _bomb_png(side)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, format_)
    data = bytearray(buffer.getvalue())
    if format_ == "jpeg":
        struct.pack_into(">HH", data, data.find(b"\xff\xc0") + 5, side, side)
    elif format_ == "webp":
        struct.pack_into("<HH", data, data.find(b"\x9d\x01\x2a") + 3, 16383, 16383)
    elif format_ == "avif":
        struct.pack_into(">II", data, data.find(b"ispe") + 8, side, side)
    elif format_ == "bmp":
        struct.pack_into("<ii", data, 18, side, side)
    elif format_ == "gif":
        struct.pack_into("<HH", data, 6, side, side)
        struct.pack_into("<HH", data, data.find(b"\x2c") + 5, side, side)
    elif format_ == "tiff":
        (at,) = struct.unpack_from("<I", data, 4)
        for entry in range(at + 2, at + 2 + 12 * data[at], 12):
            if struct.unpack_from("<H", data, entry)[0] in (256, 257, 278):
                struct.pack_into("<HII", data, entry + 2, 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("format_", FORMATS)
def test_decompression_bombs_are_refused_before_decoding(tmp_path, format_):
    path = tmp_path / f"a.{format_}"
    path.write_bytes(_bomb(format_, 60000))
    limit = 200_000_000 if format_ == "webp" else 400_000_000
    text = r"promises .* megapixels, more than the limit of \d00; if you trust .* limit_pixels .*--limit-megapixels"
    refused(path, text, limit_pixels=limit)
    assert images.probe(path).megapixels > 200


def test_a_limit_can_be_raised(tmp_path):
    path = saved(tmp_path / "a.png", smooth(10, 10, 3))
    refused(path, "more than the limit of 0", limit_pixels=99)
    assert images.read(path, limit_pixels=100).width == 10


@pytest.mark.parametrize(("kind", "name"), [(np.float32, "float"), (np.int16, "short"), (np.uint32, "uint")])
def test_kinds_of_samples_that_cannot_be_kept(tmp_path, kind, name):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), kind))
    refused(tmp_path / "a.tif", f"sample format is {name}; .* 16-bit .*convert it to 16 bits first")


def test_too_many_channels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8, 5), np.uint8), photometric="rgb")
    refused(tmp_path / "a.tif", "it has 5 channels; foveal reads 1 to 4.*a picture of their own")


def test_deep_animated_png(tmp_path):
    first, second = (Image.fromarray(smooth(8, 8, 3) // i) for i in (1, 2))
    path = tmp_path / "a.png"
    first.save(path, save_all=True, append_images=[second])
    data = bytearray(path.read_bytes())
    data[24] = 16
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)
    refused(path, "an animated PNG of more than 8 bits, .* without loss; save its frames as single pictures")


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"%PDF-1.7", "a PDF document, .*pdftoppm"),
        (b"%!PS-Adobe", "a PostScript drawing"),
        (b"8BPS", "a Photoshop document"),
        (b"FUJIFILMCCD-RAW", "a camera's raw file"),
        (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
        (b"#?RADIANCE", "a Radiance HDR picture"),
        (b"P6\n8 8\n255\n", "a PNM picture"),
        (b"\0\0\1\0\1\0", "an icon"),
        (b"DDS ", "a DirectDraw surface"),
        (b"\0\0\0\x18ftypisom", "a video without a film's name, .*ffmpeg"),
        (b"PK\3\4", "a ZIP archive"),
        (b"\n<!DOCTYPE html><html>", "a web page, not a picture; download the picture itself"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "an SVG drawing, which has no pixels yet; export it as PNG"),
    ],
)
def test_what_people_give_by_mistake_is_named(tmp_path, head, text):
    (tmp_path / "a.jpg").write_bytes(head.ljust(64, b"\0"))
    refused(tmp_path / "a.jpg", f"it is {text}")


def test_a_changed_file_is_read_anew(tmp_path):
    path = saved(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    assert pixels_of(path).max() == 0
    saved(path, np.full((4, 4, 3), 9, np.uint8))
    assert pixels_of(path).min() == 9


def test_the_package_is_light():
    code = "import sys, foveal.images; print(sorted({'torch', 'pyvips', 'PIL', 'numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"\[\]\n", out)
    code = "import sys; from foveal import images; images.read; images.Writer; "
    code += "print({'torch', 'pyvips', 'PIL'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"


def test_names_of_the_package():
    assert set(images.__all__) <= set(dir(images))
    for name in images.__all__:
        assert getattr(images, name) is not None
    with pytest.raises(AttributeError, match=r"'foveal\.images' has no attribute 'nothing'"):
        images.nothing  # noqa: B018


def test_a_resolution_beyond_reason_is_none(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", smooth(8, 9, 3), photometric="rgb", resolution=(4_000_000_000, 300))
    assert images.read(tmp_path / "a.tif").metadata.dpi is None


def test_lab_in_a_damaged_file(tmp_path):
    stored = np.full((8, 8, 3), 100, np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(stored, photometric="cielab")
        file.write(stored, photometric="cielab")
    from foveal.images.tiff import Tiff

    data = bytearray((tmp_path / "a.tif").read_bytes())
    tiff = Tiff(data)
    struct.pack_into(tiff.order + "I", data, tiff.next_at(tiff.first), len(data) * 2)
    (tmp_path / "a.tif").write_bytes(data)
    refused(tmp_path / "a.tif", r"is damaged or truncated \(.*\); copy or download it again")
