"""Writing: everything comes back from every format, whole files or none, and memory that does not grow."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from picture_samples import THUMBNAIL, XMP, camera, display_p3, smooth, to_srgb
from PIL import Image

from foveal import images
from foveal.images import Metadata, Picture, PictureError, Writer, exif, xmp

SUFFIXES = ("png", "jpg", "webp", "tif", "avif", "gif", "bmp")
CAMERA = ("png", "jpg", "webp", "tif", "avif")
TOLERANCE = {"jpg": 4, "avif": 6, "gif": 40}


def picture(pixels, **metadata):
    bits = 16 if pixels.dtype == np.uint16 else 8
    return Picture(pixels, pixels.shape[2] in (2, 4), Metadata(bits=bits, **metadata))


def round_trip(path, pixels, **metadata):
    images.write(path, picture(pixels, **metadata))
    return images.read(path)


def difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).max()


# ---- pixels


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_8_bits(tmp_path, suffix, channels):
    pixels = smooth(33, 47, channels)
    if suffix == "gif" and channels in (2, 4):
        pixels[..., -1] = np.where(pixels[..., -1] > 99, 255, 0)  # GIF knows no half-transparent pixels
    if suffix == "jpg" and channels in (2, 4):
        with pytest.raises(PictureError, match="JPEG cannot hold transparency; write PNG, WebP or TIFF, or give a b"):
            round_trip(tmp_path / "a.jpg", pixels)
        return
    got = round_trip(tmp_path / f"a.{suffix}", pixels).frame()
    want = pixels
    if channels <= 2 and (suffix in ("webp", "avif", "gif") or (suffix == "bmp" and channels == 2)):
        want = np.dstack([np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1:]])  # these store grey as colour
    shown = slice(None) if suffix != "gif" or channels in (1, 3) else want[..., -1] > 0
    assert difference(got.pixels[shown], want[shown]) <= TOLERANCE.get(suffix, 0)
    assert got.alpha == (channels in (2, 4))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits(tmp_path, suffix, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (21, 13, channels), np.uint16)
    reading = round_trip(tmp_path / f"a.{suffix}", pixels)
    np.testing.assert_array_equal(reading.frame().pixels, pixels)
    assert reading.metadata.bits == 16


@pytest.mark.parametrize("depth", [10, 12])
def test_deep_avif_keeps_its_depth(tmp_path, depth):
    pixels = smooth(32, 32, 3, np.uint16)
    source = picture(pixels, depth=depth)
    images.write(tmp_path / "a.avif", source, quality=100)
    reading = images.read(tmp_path / "a.avif")
    assert reading.metadata.depth == depth
    assert difference(reading.frame().pixels, pixels) <= 65535 / (2**depth - 1) / 2 + 1


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif", "bmp"])
def test_16_bits_are_rounded_for_formats_of_8(tmp_path, suffix):
    pixels = np.full((16, 16, 3), 100 * 257 + 120, np.uint16)
    got = round_trip(tmp_path / f"a.{suffix}", pixels).frame().pixels
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - 100).max() <= (1 if suffix in ("jpg", "gif") else 0)


def test_8_bit_rows_are_widened_for_a_16_bit_file(tmp_path):
    with Writer(tmp_path / "a.png", 5, 4, 1, Metadata(bits=16)) as writer:
        writer.rows(np.full((4, 5), 255, np.uint8))
    assert (images.read(tmp_path / "a.png").frame().pixels == 65535).all()


@pytest.mark.parametrize("background", [0, 255, (10, 20, 30)])
@pytest.mark.parametrize("channels", [2, 4])
def test_a_background_below_transparent_pixels(tmp_path, background, channels):
    pixels = np.full((16, 16, channels), 200, np.uint8)
    pixels[..., -1] = 0
    images.write(tmp_path / "a.jpg", picture(pixels), background=background)
    got = images.read(tmp_path / "a.jpg").frame().pixels
    below = np.mean(background) if channels == 2 else background
    assert np.abs(got.astype(int) - below).max() <= 2


def test_quality(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = {}
    for suffix in ("jpg", "webp", "avif"):
        for quality in (30, None, 100):
            path = tmp_path / f"{quality}.{suffix}"
            images.write(path, picture(noise, lossless=False), quality=quality)
            sizes[quality] = path.stat().st_size
        assert sizes[30] < sizes[None] < sizes[100]
    for suffix in ("webp", "avif"):
        np.testing.assert_array_equal(images.read(tmp_path / f"100.{suffix}").frame().pixels, noise)
    with Image.open(tmp_path / "None.jpg") as image:
        from PIL import JpegImagePlugin

        assert JpegImagePlugin.get_sampling(image) == 0, "colours must not be subsampled"


def test_webp_is_lossless_when_the_source_was(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    assert difference(round_trip(tmp_path / "a.webp", noise, lossless=True).frame().pixels, noise) == 0
    assert difference(round_trip(tmp_path / "b.webp", noise, lossless=False).frame().pixels, noise) > 0


# ---- what belongs to a picture


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", CAMERA)
def test_the_profile_is_carried_byte_for_byte(tmp_path, suffix, bits):
    pixels = smooth(16, 24, 3, np.uint16 if bits == 16 else np.uint8)
    reading = round_trip(tmp_path / f"a.{suffix}", pixels, icc=display_p3())
    assert reading.metadata.icc == display_p3()
    scale = 257 if bits == 16 and reading.metadata.bits == 8 else 1
    assert (
        difference(reading.frame().pixels, (pixels / scale).round())
        <= TOLERANCE.get(suffix, 0) * int(pixels.max()) / 200
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_display_p3_picture_looks_the_same_in_every_format(tmp_path, suffix):
    pixels = smooth(24, 32, 3)
    reading = round_trip(tmp_path / f"a.{suffix}", pixels, icc=display_p3())
    got = reading.frame().pixels
    looks = to_srgb(got, reading.metadata.icc) if reading.metadata.icc else got
    error = np.abs(looks.astype(int) - to_srgb(pixels, display_p3()))
    assert error.mean() <= {"gif": 4, "avif": 2}.get(suffix, 1)
    assert np.abs(pixels.astype(int) - to_srgb(pixels, display_p3())).mean() > 4, "else this test shows nothing"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_grey_profile_looks_the_same_in_every_format(tmp_path, suffix):
    pixels = smooth(24, 32, 1)
    profile = display_p3(b"GRAY")
    reading = round_trip(tmp_path / f"a.{suffix}", pixels, icc=profile)
    got = reading.frame().pixels
    looks = to_srgb(got, reading.metadata.icc) if reading.metadata.icc else got
    want = to_srgb(pixels, profile)
    error = np.abs(np.broadcast_to(looks, want.shape).astype(int) - want)
    assert error.mean() <= 1.5
    if suffix in ("png", "jpg", "tif"):
        assert reading.metadata.icc == profile
        assert got.shape[2] == 1


def test_a_colour_profile_on_grey_pixels_is_applied_where_png_forbids_it(tmp_path):
    pixels = smooth(8, 8, 2)
    reading = round_trip(tmp_path / "a.png", pixels, icc=display_p3())
    got = reading.frame().pixels
    assert reading.metadata.icc is None
    want = to_srgb(np.repeat(pixels[..., :1], 3, axis=2), display_p3())[..., :1]
    assert difference(got[..., :1], want) <= 1
    np.testing.assert_array_equal(got[..., 1], pixels[..., 1])


@pytest.mark.parametrize("suffix", CAMERA)
def test_camera_data(tmp_path, suffix):
    blob = exif.upright(camera(6, 60, 40, thumbnail=True))
    packet = xmp.upright(XMP)
    reading = round_trip(tmp_path / f"a.{suffix}", smooth(80, 120, 3), exif=blob, xmp=packet, dpi=(300, 150))
    assert reading.frame().pixels.shape == (80, 120, 3), "the orientation must not be applied again"
    data = Image.Exif()
    data.load(reading.metadata.exif)
    assert data.get(0x0112, 1) == 1
    assert (data[0x010F], data[0x0110], data[0x8298]) == ("Maker", "Model X", "(c) Somebody")
    sub, gps = data.get_ifd(0x8769), data.get_ifd(0x8825)
    assert (sub[0xA002], sub[0xA003]) == (120, 80)
    assert sub[0x829A] == (1, 200) or float(sub[0x829A]) == pytest.approx(1 / 200)
    assert (sub[0x9003], sub[0x927C], sub[0xA434]) == ("2024:01:02 03:04:05", b"MakerNote" * 9, "Lens 50")
    assert (gps[1], gps[2]) == ("N", (48.0, 12.0, 30.5))
    assert THUMBNAIL not in (tmp_path / f"a.{suffix}").read_bytes()
    assert b'tiff:Orientation="1"' in reading.metadata.xmp
    assert b'tiff:ImageWidth="120"' in reading.metadata.xmp
    assert reading.metadata.dpi == pytest.approx((300, 150), abs=0.02)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.getexif().get(0x0110) == "Model X", "another reader must find it too"
        assert image.size == (120, 80)


@pytest.mark.parametrize("suffix", CAMERA)
def test_nothing_is_made_up(tmp_path, suffix):
    metadata = round_trip(tmp_path / f"a.{suffix}", smooth(8, 8, 3)).metadata
    assert (metadata.exif, metadata.icc, metadata.xmp, metadata.iptc) == (None, None, None, None)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_resolution_without_camera_data(tmp_path, suffix):
    metadata = round_trip(tmp_path / f"a.{suffix}", smooth(8, 8, 3), dpi=(300, 150)).metadata
    assert metadata.dpi == pytest.approx((300, 150), abs=0.02)


def test_press_data(tmp_path):
    caption = b"\x1c\x02\x78\x00\x09A caption"
    iptc = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + len(caption).to_bytes(4, "big") + caption
    assert round_trip(tmp_path / "a.jpg", smooth(8, 8, 3), iptc=iptc).metadata.iptc == iptc
    assert round_trip(tmp_path / "a.png", smooth(8, 8, 3), iptc=iptc).metadata.iptc is None


def test_png_texts(tmp_path):
    comments = (("Title", "A kingfisher"), ("Source", "own"))
    assert round_trip(tmp_path / "a.png", smooth(8, 8, 3), comments=comments).metadata.comments == comments


# ---- several frames


def moving(channels):
    frames = np.zeros((4, 20, 30, 4), np.uint8)
    for i in range(4):
        frames[i, 4 + i : 10 + i, 5:15] = (200, 30 * i, 10, 255)
        frames[i, 0, 0] = (0, 0, 255, 255)
    return frames if channels == 4 else np.ascontiguousarray(frames[..., :3])


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif"])
@pytest.mark.parametrize("loop", [0, 1, 3])
def test_animation_keeps_its_timing(tmp_path, suffix, loop, channels):
    frames = moving(channels)
    metadata = Metadata(durations=(50, 70, 120, 300), loop=loop)
    with Writer(tmp_path / f"a.{suffix}", 30, 20, channels, metadata, frames=4) as writer:
        for frame in frames:
            writer.rows(frame[:7])
            writer.rows(frame[7:])
    reading = images.read(tmp_path / f"a.{suffix}")
    assert reading.metadata.durations == (50, 70, 120, 300)
    assert reading.metadata.loop == loop or suffix == "avif"
    for i in range(4):
        got = reading.frame(i).pixels
        shown = frames[i, ..., 3] > 0 if channels == 4 else np.ones((20, 30), bool)
        assert difference(got[shown][:, :3], frames[i][shown][:, :3]) <= (60 if suffix == "avif" else 0)
        if channels == 4:
            np.testing.assert_array_equal(got[..., 3] > 127, shown)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_equal_frames_keep_the_time_they_are_shown(tmp_path, suffix):
    frame = moving(3)[0]
    with Writer(tmp_path / f"a.{suffix}", 30, 20, 3, Metadata(durations=(50, 70, 120)), frames=3) as writer:
        writer.rows(np.concatenate([frame, frame, moving(3)[2]]))
    durations = images.read(tmp_path / f"a.{suffix}").metadata.durations
    assert durations == (50, 70, 120) if suffix == "gif" else sum(durations) == 240


def test_pages_of_a_document(tmp_path):
    pages = [smooth(8, 9, 3), smooth(8, 9, 3)[::-1]]
    with Writer(tmp_path / "a.tif", 9, 8, 3, Metadata(exif=exif.upright(camera())), frames=2) as writer:
        for page in pages:
            writer.rows(page)
    reading = images.read(tmp_path / "a.tif")
    assert reading.frames == 2
    for i in range(2):
        np.testing.assert_array_equal(reading.frame(i).pixels, pages[i])


# ---- whole files or none


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(tmp_path, suffix, error):
    def half():
        with Writer(tmp_path / f"a.{suffix}", 64, 64, 3) as writer:
            writer.rows(smooth(32, 64, 3))
            assert not (tmp_path / f"a.{suffix}").exists()
            raise error

    with pytest.raises(error):
        half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_existing_file_is_safe(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(PictureError, match=r"a\.\w+: the file exists already; .*overwrite=True, .*--overwrite"):
        images.write(path, picture(smooth(8, 8, 3)))
    assert path.read_bytes() == b"precious"

    def fail():
        with Writer(path, 8, 8, 3, overwrite=True) as writer:
            writer.rows(smooth(4, 8, 3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"precious"
    images.write(path, picture(smooth(8, 8, 3)), overwrite=True)
    assert images.probe(path).width == 8
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_that_appears_meanwhile_is_safe(tmp_path):
    def race():
        with Writer(tmp_path / "a.png", 8, 8, 3) as writer:
            writer.rows(smooth(8, 8, 3))
            (tmp_path / "a.png").write_bytes(b"precious")

    with pytest.raises(PictureError, match="the file exists already"):
        race()
    assert (tmp_path / "a.png").read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_permissions_are_the_usual_ones(tmp_path):
    (tmp_path / "other").touch()
    images.write(tmp_path / "a.png", picture(smooth(8, 8, 3)))
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_a_full_disk_is_an_error(tmp_path, suffix, monkeypatch):
    writer = Writer(tmp_path / f"a.{suffix}", 512, 512, 3)
    writer._temporary = Path("/dev/full")
    monkeypatch.setattr(writer, "_discard", lambda: None)

    def fill():
        with writer:
            for _ in range(8):
                writer.rows(np.random.default_rng(0).integers(0, 256, (64, 512, 3), np.uint8))

    with pytest.raises(PictureError, match=r"it cannot be written \(.*\); check the space and rights on that disk"):
        fill()
    assert list(tmp_path.iterdir()) == []


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "size", "options", "text"),
    [
        ("a.xyz", (8, 8, 3), {}, r"foveal writes no \.xyz files; end the name in one of \.png, \.jpg"),
        ("a", (8, 8, 3), {}, "the name has no suffix to tell the format by; end the name"),
        ("a.webp", (16384, 8, 3), {}, "WebP holds at most 16,383 pixels a side, this picture has 16384 × 8; write PNG"),
        ("a.avif", (8, 16385, 3), {}, "AVIF holds at most 16,384 pixels a side"),
        ("a.jpg", (65501, 8, 3), {}, "JPEG holds at most 65,500 pixels a side"),
        ("a.gif", (8, 65536, 3), {}, "GIF holds at most 65,535 pixels a side"),
        ("a.bmp", (40000, 40000, 3), {}, r"BMP cannot hold 40000 × 40000 pixels \(4 GB\); write TIFF or PNG"),
        ("a.jpg", (8, 8, 3), {"frames": 12}, "JPEG cannot hold 12 frames; write GIF, WebP or PNG, or one file per"),
        ("none/a.png", (8, 8, 3), {}, "there is no folder .*none; create it first"),
        ("folder.png", (8, 8, 3), {"overwrite": True}, "a folder has this name; choose another name"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path, name, size, options, text):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match=text) as caught:
        Writer(tmp_path / name, *size, **options)
    assert str(tmp_path / name) in str(caught.value)


def test_wrong_calls(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="at least 1 and channels 1 to 4, got 0 × 8, 1 frames, 3 channels"):
        Writer(path, 0, 8, 3)
    with pytest.raises(ValueError, match=r"quality must be in 1…100, got 0; leave it out"):
        Writer(path, 8, 8, 3, quality=0)
    with pytest.raises(ValueError, match="one duration per frame, got 1 for 2 frames"):
        Writer(path, 8, 8, 3, Metadata(durations=(1,)), frames=2)
    with pytest.raises(ValueError, match="rows must be called inside the Writer's with block"):
        Writer(path, 8, 8, 3).rows(smooth(8, 8, 3))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.zeros((2, 8, 4), np.uint8), r"rows must be \(n, 8, 3\), got shape \(2, 8, 4\)"),
        (np.zeros((2, 8, 3)), "rows must be uint8 or uint16, got float64; scale and round first"),
        (np.zeros((9, 8, 3), np.uint8), "the picture has 8 rows, got 9; give the Writer the height"),
        (np.zeros((7, 8, 3), np.uint8), "the picture has 8 rows, got only 7; write the rest too"),
    ],
)
def test_wrong_rows(tmp_path, rows, text):
    def wrong():
        with Writer(tmp_path / "a.png", 8, 8, 3) as writer:
            writer.rows(rows)

    with pytest.raises(ValueError, match=text):
        wrong()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pixels", "alpha", "text"),
    [
        (np.zeros((2, 2), np.uint8), False, r"pixels must be \(H, W, C\) .*got shape \(2, 2\)"),
        (np.zeros((0, 2, 3), np.uint8), False, "not empty"),
        (np.zeros((2, 2, 3)), False, "uint8 or uint16, got float64"),
        (np.zeros((2, 2, 3), np.uint8), True, "alpha must be False for 3 channels, got True"),
    ],
)
def test_picture_checks_its_pixels(pixels, alpha, text):
    with pytest.raises(ValueError, match=text):
        Picture(pixels, alpha)


def test_picture_knows_its_size():
    one = picture(smooth(5, 7, 4))
    assert (one.width, one.height, one.channels) == (7, 5, 4)
    assert images.Info(2000, 1000, 3, 8, 1, "png").megapixels == 2
    assert replace(one.metadata, bits=16).bits == 16


def test_errors_can_be_sent_to_another_process():
    import pickle

    error = pickle.loads(pickle.dumps(PictureError("a.png", "it is blue", "paint it")))
    assert str(error) == "a.png: it is blue; paint it"


# ---- memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_height(tmp_path):
    code = f"""
        import numpy as np
        from foveal.images import Writer

        rows = np.resize(np.arange(251, dtype=np.uint8), (128, 1500, 3))

        def peak():  # megabytes; unlike getrusage it does not count the process that started this one
            return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

        def write(blocks):
            for suffix in ("png", "jpg", "tif", "bmp"):
                with Writer({str(tmp_path / "a.")!r} + suffix, 1500, blocks * 128, 3, overwrite=True) as writer:
                    for _ in range(blocks):
                        writer.rows(rows)
            return peak()

        low, tall = write(10), write(80)
        whole = np.concatenate([rows] * 80)
        print(tall - low, peak() - tall)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert out.stderr == ""
    streamed, whole = map(int, out.stdout.split())
    assert whole >= 20, "44 megabytes held in memory must show, else this test sees nothing"
    assert streamed <= 12
    assert {images.probe(path).height for path in tmp_path.iterdir()} == {80 * 128}
