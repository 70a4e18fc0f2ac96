"""JPEG XL pictures, made by the libraries that read them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from picture_samples import XMP, camera, display_p3, smooth
from PIL import Image

from foveal import images
from foveal.images import exif, jxl
from foveal.images.cicp import Cicp
from foveal.images.jxl_header import Header, read_header

codecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed (the extra jxl)")
plugin = pytest.importorskip("pillow_jxl", reason="pillow-jxl-plugin is not installed (the extra jxl)")

# smooth(8, 12, 3) with display_p3(), by `cjxl -d 0.5` 0.7: lossy with a profile, which neither library writes.
LOSSY_P3 = """
/woBQQo3CwMS5gGQnLFyAu28jq8xGnzetRUx+DoWNMSwtAg+ZsuAc1sm6LQJPDmyDpxYglsPp9bG5+BB1tHWOb8Af4EodZrU4IcQslaUNXW8QNLX1tBU
lw/2JEydhWUNzS8QupM/RPasrPfrprdBg7xwe7/+/fuHA5WCUOxS2EoHF10MJ3YhZDtgjafDt68BABKIANABv8ooAQBQoTLKuMHLuZ4vP3RYTNu4ztBW
2xaWJIqMY5N0AocksQzobiccECgCBTFPO6y2bG/sKAeHqSSRGsqN3f/mSkLEkAio8Z8ntcrZCItw9O3dvCqRQHneYfD85v5dXwzagaACwALAAIDqxfWE
NJH0sAA=
"""


def saved(path, pixels, **options):
    path.write_bytes(
        codecs.jpegxl_encode(pixels[..., 0] if pixels.shape[2] == 1 else pixels, **({"lossless": True} | options))
    )
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_pixels_come_back(tmp_path, channels, dtype):
    pixels = smooth(9, 11, channels, dtype)
    path = saved(tmp_path / "a.jxl", pixels)
    info, reading = images.probe(path), images.read(path)
    assert (info.width, info.height, info.channels, info.format) == (11, 9, channels, "jxl")
    assert info.bits == 8 * pixels.itemsize
    assert reading.metadata.lossless
    assert (reading.frame().pixels == pixels).all()
    assert reading.frame().alpha == (channels in (2, 4))


@pytest.mark.parametrize("bits", [4, 10, 12])
def test_depths_between_fill_the_range(tmp_path, bits):
    top = (1 << bits) - 1
    pixels = np.linspace(0, top, 8 * 8 * 3).round().reshape(8, 8, 3).astype(np.uint8 if bits < 8 else np.uint16)
    reading = images.read(saved(tmp_path / "a.jxl", pixels, bitspersample=bits))
    made = reading.frame().pixels
    whole = 255 if bits < 8 else 65535
    assert (made.min(), made.max(), reading.metadata.depth) == (0, whole, bits)
    assert np.abs(made - pixels / top * whole).max() <= 0.5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (16, 256), (7, 63), (300, 400), (9, 16), (520, 513)])
def test_sizes_are_read_from_the_header(height, width):
    head = read_header(codecs.jpegxl_encode(np.zeros((height, width, 3), np.uint8), lossless=True, effort=1))
    assert (head.width, head.height) == (width, height)
    assert head.cicp == Cicp(1, 13)


def test_header_of_a_long_number_and_defaults():
    # Signature, no eighths, height 1 + 2 of 9 bits, ratio 2:1 (7), all defaults.
    bits = 0b0 | 0b00 << 1 | 2 << 3 | 7 << 12 | 1 << 15
    assert read_header(b"\xff\x0a" + bits.to_bytes(2, "little")) == Header(6, 3)


def test_a_packed_jpeg_keeps_profile_camera_data_and_direction(tmp_path):
    file = io.BytesIO()
    pixels = smooth(8, 12, 3)
    Image.fromarray(pixels).save(file, "JPEG", quality=98, subsampling=0, exif=camera(6, 12, 8),
                                 icc_profile=display_p3(), xmp=XMP)  # fmt: skip
    path = tmp_path / "a.jxl"
    path.write_bytes(codecs.jpegxl_encode_jpeg(file.getvalue()))
    reading = images.read(path)
    assert (reading.width, reading.height) == (8, 12)
    assert np.abs(reading.frame().pixels.astype(int) - np.rot90(pixels, -1)).mean() < 3
    assert reading.metadata.icc == display_p3()
    assert exif.orientation(reading.metadata.exif) == 1
    assert b'tiff:Orientation="1"' in reading.metadata.xmp
    assert reading.metadata.left_out == ()


@pytest.mark.parametrize("compress", [False, True])
def test_exif_and_xmp_in_boxes(tmp_path, compress):
    pixels = smooth(8, 12, 3)
    made = plugin.Encoder("RGB", lossless=True, use_container=True, num_threads=1)
    data = made(
        pixels.tobytes(), 12, 8, jpeg_encode=False, exif=camera(1, 12, 8), xmp=XMP, jumb=None, compress=compress
    )
    (tmp_path / "a.jxl").write_bytes(data)
    found = images.read(tmp_path / "a.jxl")
    assert (found.frame().pixels == pixels).all()
    assert exif.orientation(found.metadata.exif) == 1
    assert b"tiff:ImageWidth" in found.metadata.xmp


def test_a_lossy_profile_becomes_srgb_and_is_told(tmp_path):
    path = tmp_path / "a.jxl"
    path.write_bytes(base64.b64decode(LOSSY_P3))
    reading = images.read(path)
    assert reading.metadata.icc is None
    assert images.foresee(path, tmp_path / "a.png", 2) == ("colour profile (the pixels become sRGB) not kept",)
    source = Image.fromarray(smooth(8, 12, 3))
    from PIL import ImageCms

    theirs = ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    wanted = np.asarray(ImageCms.profileToProfile(source, theirs, ImageCms.createProfile("sRGB")))
    assert np.abs(reading.frame().pixels.astype(int) - wanted).mean() < 2.5


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: codecs.jpegxl_encode(np.stack([smooth(8, 9, 3)] * 2)), "an animated JPEG XL, .* frames as single"),
        (lambda: codecs.jpegxl_encode(smooth(8, 9, 3).astype(np.float32) / 255), "32 bits, floating-point; .*16 bits"),
        (lambda: codecs.jpegxl_encode(smooth(8, 9, 3))[:3], r"damaged or truncated \(the header is cut off"),
        (lambda: codecs.jpegxl_encode(smooth(8, 9, 3))[:-4], r"damaged or truncated \("),
        (lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), r"damaged or truncated \(it has no codestream"),
    ],
)
def test_refused(tmp_path, make, text):
    (tmp_path / "a.jxl").write_bytes(make())
    with pytest.raises(images.PictureError, match=text):
        images.read(tmp_path / "a.jxl")


def test_cmyk_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.jxl", smooth(8, 9, 3))
    monkeypatch.setattr(jxl, "read_header", lambda _: Header(9, 8, others=("black ink",)))
    with pytest.raises(images.PictureError, match=r"its colours are CMYK; .* convert it to RGB first"):
        images.probe(path)


def test_colours_are_divided_by_alpha_and_further_channels_named(tmp_path, monkeypatch):
    pixels = np.array([[[64, 32, 0, 128], [9, 9, 9, 0]]], np.uint8)
    path = saved(tmp_path / "a.jxl", pixels)
    monkeypatch.setattr(
        jxl, "read_header", lambda _: Header(2, 1, alpha=True, premultiplied=True, others=("depth map",))
    )
    reading = images.read(path)
    assert reading.frame().pixels.tolist() == [[[128, 64, 0, 128], [0, 0, 0, 0]]]
    assert reading.metadata.left_out == ("depth map",)


def test_limits_count_before_decoding(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.jxl", smooth(32, 45, 3))
    monkeypatch.setattr(codecs, "jpegxl_decode", None)
    with pytest.raises(images.PictureError, match="its header promises 45 × 32 = "):
        images.read(path, limit_pixels=1000)
