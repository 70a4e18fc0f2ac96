"""DNG: developed with the camera's white and matrix, turned, exposed; what it holds besides; what is refused."""

import struct

import numpy as np
import pytest
from PIL import Image
from raw_files import write_dng

from foveal import images
from foveal.images import dng
from foveal.images.formats import is_dng, result_format, sniff

rawpy = pytest.importorskip("rawpy", reason="rawpy is not installed (the extra raw)")
COLOURS = ((0.4, 0.4, 0.4), (0.3, 0.2, 0.1), (0.1, 0.3, 0.4))
PLACES = ((8, 30), (32, 10), (32, 50))
PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="a"/></rdf:RDF></x:xmpmeta>'
)


def scene():
    """Linear sRGB: grey above, two colours below, (48, 64, 3)."""
    linear = np.empty((48, 64, 3))
    linear[:16], linear[16:, :32], linear[16:, 32:] = COLOURS
    return linear


def curve(linear):
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def developed(path):
    return images.read(path).frame(0).pixels


def test_colours_are_those_of_the_scene(tmp_path):
    path = write_dng(tmp_path / "a.dng", scene())
    info = images.probe(path)
    assert (info.width, info.height, info.channels, info.bits, info.frames, info.format) == (64, 48, 3, 16, 1, "dng")
    pixels = developed(path)
    assert (pixels.dtype, pixels.shape) == (np.uint16, (48, 64, 3))
    for place, colour in zip(PLACES, COLOURS, strict=True):
        np.testing.assert_allclose(pixels[place] / 65535, curve(np.array(colour)), atol=0.004)


def test_white_is_what_the_camera_noted(tmp_path):
    grey = np.full((48, 64, 3), 0.25)
    pixels = developed(write_dng(tmp_path / "a.dng", grey, light=(1.3, 1.0, 0.6)))
    np.testing.assert_allclose(pixels[8:-8, 8:-8] / 65535, curve(0.25), atol=0.004)


def test_it_is_exposed_as_the_file_says_and_no_further(tmp_path):
    brighter = developed(write_dng(tmp_path / "a.dng", scene(), exposure=1.0))
    darker = developed(write_dng(tmp_path / "b.dng", scene() / 4))
    for place, colour in zip(PLACES, COLOURS, strict=True):
        np.testing.assert_allclose(brighter[place] / 65535, curve(2 * np.array(colour)), atol=0.006)
        np.testing.assert_allclose(darker[place] / 65535, curve(np.array(colour) / 4), atol=0.006)
    bright = developed(write_dng(tmp_path / "d.dng", np.full((48, 64, 3), 0.9)))
    np.testing.assert_allclose(bright[8:-8, 8:-8] / 65535, curve(np.float64(0.9)), atol=0.004)
    assert dng._shift(write_dng(tmp_path / "c.dng", scene(), exposure=9)) == 8


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_it_is_turned_once(tmp_path, orientation, turns):
    path = write_dng(tmp_path / "a.dng", scene(), orientation=orientation)
    turned = developed(path)
    assert (images.probe(path).height, images.probe(path).width) == turned.shape[:2]
    assert np.array_equal(turned, np.rot90(developed(write_dng(tmp_path / "b.dng", scene())), turns))
    assert b"\x12\x01" not in (images.read(path).metadata.exif or b"")[:200]


def test_what_the_camera_noted_is_kept(tmp_path):
    path, out = write_dng(tmp_path / "a.dng", scene(), xmp=PACKET), tmp_path / "b.png"
    found = images.read(path)
    assert found.metadata.left_out == ("lens corrections (opcodes)",)
    assert b'dc:format="a"' in found.metadata.xmp
    images.write(out, found.frame(0))
    with Image.open(out) as opened:
        kept = opened.getexif()
        assert (kept[0x010F], kept[0x0110], kept[0x010E]) == ("Nobody", "Box 1", "a walk")
        assert kept.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
        assert kept.get_ifd(0x8769)[0x829A] == pytest.approx(0.01)
    assert np.array_equal(developed(out), developed(path))


def test_it_is_known_by_its_content(tmp_path):
    path = write_dng(tmp_path / "photo.tif", scene())
    assert sniff(path.read_bytes()[:4096]) == "dng"
    late = write_dng(tmp_path / "late", scene(), late=True)
    assert sniff(late.read_bytes()[:4096]) == "tiff"  # the directory is not among these bytes
    assert [images.probe(one).format for one in (path, late)] == ["dng", "dng"]
    assert np.array_equal(developed(late), developed(path))
    assert result_format("dng") == "png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "b.tif")
    assert not is_dng((tmp_path / "b.tif").read_bytes())
    assert images.probe(tmp_path / "b.tif").format == "tiff"
    assert not is_dng(b"no TIFF")


def test_a_sensor_without_colours_gives_grey(tmp_path):
    path = write_dng(tmp_path / "a.dng", np.full((48, 64, 3), 0.3))
    mosaic, linear = (struct.pack("<HHIH", 262, 3, 1, kind) for kind in (32803, 34892))
    path.write_bytes(path.read_bytes().replace(mosaic, linear))
    assert images.probe(path).channels == 1
    assert developed(path).shape == (48, 64, 1)


def test_an_unknown_camera_is_named(tmp_path):
    path = write_dng(tmp_path / "a.dng", scene(), matrix=False)
    with pytest.raises(images.PictureError) as error:
        images.probe(path)
    assert error.value.wrong == (
        "foveal develops DNG files whose colours are described, got one of Nobody Box 1 that cannot be developed (it "
        "holds no colour matrix, and LibRaw knows none for it)"
    )
    assert error.value.advice.startswith("convert it anew with Adobe DNG Converter, or develop it to TIFF")
    path = write_dng(tmp_path / "b.dng", scene())
    plain, odd = (struct.pack("<HHIH", 259, 3, 1, code) for code in (1, 34713))  # not compressed; another maker's way
    path.write_bytes(path.read_bytes().replace(plain, odd))
    with pytest.raises(images.PictureError, match=r"got one of Nobody Box 1 .* \(LibRaw does not decode its samples\)"):
        developed(path)
    path.write_bytes(b"II*\0\x08\0\0\0\x01\0\x12\xc6\x01\0\x04\0\0\0\x01\x04\0\0" + bytes(4))
    with pytest.raises(images.PictureError, match="the file is damaged or truncated"):
        images.probe(path)


def test_a_truncated_file_is_damaged(tmp_path):
    path = write_dng(tmp_path / "a.dng", scene())
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(images.PictureError, match="the file is damaged or truncated"):
        developed(path)
