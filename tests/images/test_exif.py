"""EXIF and XMP: patched in place, moved into TIFF of every layout, and never trusted."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from picture_samples import THUMBNAIL, XMP, camera, smooth
from PIL import Image

from foveal.images import exif, xmp


def swapped() -> bytes:
    """Small EXIF in little-endian order, as Pillow writes big-endian here."""
    entries = [(0x0110, 2, b"Model Y\0"), (0x0112, 3, struct.pack("<H", 8)), (0x011A, 5, struct.pack("<II", 3000, 10)),
               (0x011B, 5, struct.pack("<II", 118, 1)), (0x0128, 3, struct.pack("<H", 3))]  # fmt: skip
    at, body, table = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, raw in entries:
        count = len(raw) // {2: 1, 3: 2, 5: 8}[kind]
        value = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", at + len(body))
        body += raw if len(raw) > 4 else b""
        table += struct.pack("<HHI", tag, kind, count) + value
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + body


def test_orientation_both_byte_orders():
    assert exif.orientation(camera(6)) == 6
    assert exif.orientation(swapped()) == 8
    assert exif.orientation(exif.upright(swapped())) == 1


def test_upright_changes_the_orientation_only():
    before, after = camera(6)[6:], exif.upright(camera(6))
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_the_thumbnail_goes():
    blob = camera(3, thumbnail=True)
    assert THUMBNAIL in blob
    out = exif.upright(blob)
    assert THUMBNAIL not in out
    data = Image.Exif()
    data.load(out)
    assert dict(data.get_ifd(1)) == {}
    assert data[0x0110] == "Model X"
    assert exif.upright(out) == out


def test_sizes_beyond_16_bits():
    data = Image.Exif()
    data.load(exif.resized(exif.upright(camera(1, 60, 40)), 100_000, 70_000))
    sub = data.get_ifd(0x8769)
    assert (sub[0xA002], sub[0xA003]) == (100_000, 70_000)


def test_resolution():
    assert exif.dpi(swapped()) == pytest.approx((300 * 2.54, 118 * 2.54))
    assert exif.dpi(camera()) is None


@pytest.mark.parametrize("blob", [b"", b"Exif\0\0", b"nonsense", b"II*\0\xff\xff\xff\x7f", b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_data_do_no_harm(blob):
    assert exif.orientation(blob) == 1
    assert exif.upright(blob) is None
    assert exif.dpi(blob) is None
    assert exif.resized(blob, 9, 9) == blob


def test_any_damage_is_survived():
    blob = bytearray(camera(6, thumbnail=True))
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(blob)
        for at in rng.integers(6, len(blob), 4):
            broken[at] = rng.integers(256)
        upright = exif.upright(bytes(broken[: rng.integers(10, len(blob))]))
        if upright:
            exif.resized(upright, 9, 9)
            exif.dpi(upright)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("blob", [camera(), swapped()], ids=["big-endian", "little-endian"])
def test_into_tiff_of_every_layout_and_out_again(tmp_path, order, big, blob):
    path = tmp_path / "a.tif"
    pages = np.stack([smooth(8, 9, 3), smooth(8, 9, 3)[::-1]])
    tifffile.imwrite(path, pages, photometric="rgb", byteorder=order, bigtiff=big, metadata=None)
    exif.into_tiff(path, exif.upright(blob))
    np.testing.assert_array_equal(tifffile.imread(path), pages)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 2
        tags = file.pages[0].tags
        assert tags["Model"].value == ("Model X" if blob != swapped() else "Model Y")
        if blob != swapped():
            assert tags["ExifTag"].value["ExposureTime"] == (1, 200)
            assert tags["ExifTag"].value["MakerNote"] == b"MakerNote" * 9
            assert tags["GPSTag"].value["GPSLatitude"] == (48, 1, 12, 1, 305, 10) or tags["GPSTag"].value
    out = Image.Exif()
    out.load(exif.from_tiff(path))
    assert out[0x0110] == ("Model X" if blob != swapped() else "Model Y")
    if blob != swapped():
        assert out.get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"
        assert out.get_ifd(0x8825)[2] == (48.0, 12.0, 30.5)


def test_a_tiff_without_camera_data(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", smooth(4, 4, 1), metadata=None, software=False)
    before = (tmp_path / "a.tif").read_bytes()
    assert exif.from_tiff(tmp_path / "a.tif") is None
    exif.into_tiff(tmp_path / "a.tif", b"damaged")
    assert (tmp_path / "a.tif").read_bytes() == before
    (tmp_path / "b.tif").write_bytes(b"II*\0 nothing that follows makes sense")
    assert exif.from_tiff(tmp_path / "b.tif") is None


def test_xmp_as_attribute_and_as_element():
    assert b'tiff:Orientation="1"' in xmp.upright(XMP)
    element = b"<tiff:Orientation> 8 </tiff:Orientation><exif:PixelXDimension>60</exif:PixelXDimension>"
    out = xmp.resized(xmp.upright(element), 240, 160)
    assert out == b"<tiff:Orientation> 1 </tiff:Orientation><exif:PixelXDimension>240</exif:PixelXDimension>"
    assert xmp.upright(b"<x>no such property</x>") == b"<x>no such property</x>"
