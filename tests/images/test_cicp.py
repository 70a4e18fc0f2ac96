"""What values mean, where no profile says it: kept in the file's own way, or turned into a profile, or refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from picture_samples import display_p3, smooth, to_srgb
from PIL import Image, ImageCms

from foveal import images
from foveal.images import Metadata, Picture, PictureError, cicp
from foveal.images.cicp import Cicp, profile, profile_of_chunks

P3, PQ, HLG, SRGB = Cicp(12, 13), Cicp(9, 16), Cicp(9, 18), Cicp(1, 13)
LINEAR = (b"gAMA", struct.pack(">I", 100000))
SRGB_GAMMA = (b"gAMA", struct.pack(">I", 45455))
POINTS = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
WIDE = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def written(path, **metadata):
    pixels = smooth(16, 24, 3)
    images.write(path, Picture(pixels, False, Metadata(**metadata)))
    return images.read(path)


def chunk_of(code):
    return (b"cICP", bytes((code.primaries, code.transfer, 0, 1)))


@pytest.mark.parametrize("code", [P3, PQ, HLG, SRGB, Cicp(1, 1), Cicp(22, 99)])
@pytest.mark.parametrize("format_", ["avif", "png"])
def test_avif_and_png_say_it_in_their_own_way(tmp_path, format_, code):
    reading = written(tmp_path / f"a.{format_}", cicp=code, format="avif")
    plain = format_ == "png" and cicp.plain(code)
    assert reading.metadata.cicp is None if plain else reading.metadata.cicp[:2] == code[:2]
    again = written(tmp_path / f"b.{format_}", cicp=code, format="png", chunks=(chunk_of(code),))
    assert again.metadata.cicp[:2] == code[:2]


@pytest.mark.parametrize("format_", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_others_get_a_profile_or_are_converted(tmp_path, format_):
    reading = written(tmp_path / f"a.{format_}", cicp=P3, format="avif")
    pixels = reading.frame().pixels
    assert (reading.metadata.icc is None) == (format_ in ("gif", "bmp"))
    looks = to_srgb(pixels, reading.metadata.icc) if reading.metadata.icc else pixels
    want = to_srgb(smooth(16, 24, 3), profile(P3))
    assert np.abs(looks.astype(int) - want).mean() <= (5 if format_ == "gif" else 2)
    assert np.abs(want.astype(int) - smooth(16, 24, 3)).mean() > 4, "else this shows nothing"


@pytest.mark.parametrize("format_", ["jpg", "webp", "tif", "gif", "bmp"])
@pytest.mark.parametrize(("code", "name"), [(PQ, r"PQ \(HDR\)"), (HLG, r"HLG \(HDR\)"), (Cicp(22, 99), "CICP 22/99")])
def test_what_has_no_profile_is_refused(tmp_path, format_, code, name):
    with pytest.raises(PictureError, match=f"cannot signal that the colours are {name}; write AVIF or PNG, which can"):
        written(tmp_path / f"a.{format_}", cicp=code)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_one_needs_nothing(tmp_path):
    assert written(tmp_path / "a.jpg", cicp=Cicp(2, 2)).metadata.icc is None
    assert cicp.plain(None)
    assert cicp.plain(Cicp(1, 6))
    assert not cicp.plain(P3)


@pytest.mark.parametrize("grey", [False, True])
def test_profiles_are_what_they_say(grey):
    made = profile(P3, grey=grey)
    space = ImageCms.ImageCmsProfile(io.BytesIO(made)).profile.xcolor_space.strip()
    assert space == ("GRAY" if grey else "RGB")
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(1 if grey else 3, 2)
    # Neutral colours have sRGB's curve, whatever the primaries.
    assert np.abs(to_srgb(ramp, made).astype(int) - ramp).max() <= 1
    assert profile(PQ) is None
    assert profile(Cicp(99, 13)) is None


def test_display_p3_is_display_p3():
    colours = np.array([[[180, 60, 50], [90, 150, 100], [60, 70, 160], [255, 255, 255]]], np.uint8)
    # The samples' profile has a gamma of 2.2 instead of sRGB's curve.
    assert np.abs(to_srgb(colours, profile(P3)).astype(int) - to_srgb(colours, display_p3())).max() <= 6


def test_png_gamma_and_points():
    assert profile_of_chunks([LINEAR, (b"sRGB", b"\0")]) is None
    assert profile_of_chunks([SRGB_GAMMA]) is None
    assert profile_of_chunks([SRGB_GAMMA, (b"cHRM", POINTS)]) is None
    assert profile_of_chunks([(b"cHRM", WIDE)], grey=True) is None
    assert profile_of_chunks([]) is None
    assert profile_of_chunks([(b"gAMA", bytes(4))]) is None
    assert profile_of_chunks([(b"cHRM", bytes(32))]) is None
    assert profile_of_chunks([(b"cHRM", POINTS[:8] * 4)]) is None, "three times the same colour"
    assert profile_of_chunks([(b"cHRM", WIDE)]) == profile(P3)
    half = to_srgb(np.full((1, 1, 3), 128, np.uint8), profile_of_chunks([LINEAR]))
    assert np.abs(half.astype(int) - 188).max() <= 1, "linear 0.5 is sRGB 188"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_linear_png_looks_the_same_elsewhere(tmp_path, channels):
    pixels = np.full((16, 16, channels), 128, np.uint8)
    for format_ in ("png", "jpg", "tif", "webp", "avif", "bmp"):
        images.write(tmp_path / f"a.{format_}", Picture(pixels, False, Metadata(chunks=(LINEAR,))))
        reading = images.read(tmp_path / f"a.{format_}")
        got = reading.frame().pixels
        if format_ == "png":
            assert reading.metadata.chunks == (LINEAR,)
            assert (got == 128).all()
            continue
        looks = to_srgb(got, reading.metadata.icc) if reading.metadata.icc else got
        assert np.abs(looks.astype(int) - 188).max() <= 2, format_


def test_an_animated_avif_keeps_its_colours(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=100, quality=95)
    from foveal.images import avif

    avif.set_colours(tmp_path / "a.avif", P3)
    reading = images.read(tmp_path / "a.avif")
    assert reading.metadata.cicp[:2] == (12, 13)
    with images.Writer(tmp_path / "b.avif", 16, 16, 3, reading.metadata, frames=3) as writer:
        for i in range(3):
            writer.rows(reading.frame(i).pixels)
    data = (tmp_path / "b.avif").read_bytes()
    assert data.count(b"colrnclx" + struct.pack(">HH", 12, 13)) == data.count(b"colrnclx") >= 1
    assert images.read(tmp_path / "b.avif").frames == 3
