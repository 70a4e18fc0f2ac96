"""What is foreseen is what happens."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from picture_samples import XMP, camera, display_p3, smooth
from PIL import Image

from foveal import images
from foveal.images import PictureError, foresee
from foveal.images.fit import encoding_bytes


@pytest.fixture
def sources(tmp_path):
    """A picture of every kind that some format cannot hold, by name."""
    frames = [Image.fromarray(smooth(8, 9, 3) // i) for i in (1, 2, 3)]
    frames[0].save(tmp_path / "move.webp", save_all=True, append_images=frames[1:], duration=100, loop=2)
    Image.fromarray(smooth(8, 9, 4)).save(tmp_path / "clear.png")
    Image.fromarray(smooth(8, 9, 3)).save(tmp_path / "photo.jpg", exif=camera(), xmp=XMP, dpi=(300, 300))
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([smooth(8, 9, 3)] * 3), photometric="rgb")
    tifffile.imwrite(tmp_path / "deep.tif", smooth(8, 9, 3, np.uint16), photometric="rgb")
    tifffile.imwrite(tmp_path / "spare.tif", smooth(8, 9, 4), photometric="rgb", extrasamples=[0])
    Image.new("L", (20000, 4)).save(tmp_path / "wide.png")
    palette = Image.fromarray(smooth(8, 9, 3)).quantize(8)
    palette.save(tmp_path / "opaque.gif", transparency=200)
    palette.save(tmp_path / "clear.gif", transparency=3)
    Image.fromarray(smooth(8, 9, 3)).save(tmp_path / "wide_gamut.avif", icc_profile=display_p3())
    return tmp_path


SUFFIXES = ("png", "jpg", "webp", "tif", "avif", "gif", "bmp")
NAMES = ("move.webp", "clear.png", "photo.jpg", "pages.tif", "deep.tif", "spare.tif", "wide.png", "opaque.gif",
         "clear.gif", "wide_gamut.avif")  # fmt: skip


def happens(source, target):
    """Enlarge by 2, and tell what was said or refused."""
    try:
        reading = images.read(source)
        with images.writer_for(reading, target, 2) as writer:
            for i in range(reading.frames):
                writer.rows(reading.frame(i).pixels.repeat(2, 0).repeat(2, 1))
    except PictureError as error:
        return str(error)
    return writer.left_out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_foreseen_happens(sources, name):
    for suffix in SUFFIXES:
        target = sources / f"out.{suffix}"
        try:
            told = foresee(sources / name, target, 2)
        except PictureError as error:
            told = str(error)
        assert not target.exists()
        assert told == happens(sources / name, target), suffix
        target.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "target", "text"),
    [
        ("clear.png", "a.jpg", r"JPEG cannot hold transparency; .*--background white"),
        ("clear.gif", "a.jpg", "JPEG cannot hold transparency"),
        ("move.webp", "a.jpg", "JPEG cannot hold 3 frames; write GIF, WebP or PNG"),
        ("move.webp", "a.bmp", "BMP cannot hold 3 frames"),
        ("pages.tif", "a.png", "PNG cannot hold a document of 3 pages; write TIFF"),
        ("pages.tif", "a.gif", "GIF cannot hold a document of 3 pages; write TIFF"),
        ("pages.tif", "a.jpg", "JPEG cannot hold a document of 3 pages; write TIFF"),
        ("wide.png", "a.jpg", "JPEG holds at most 65,500 pixels a side, this picture has 80000 × 16"),
        ("photo.jpg", "a.heic", r"foveal writes no \.heic files"),
    ],
)
def test_what_cannot_be_is_told_before(sources, name, target, text):
    with pytest.raises(PictureError, match=text):
        foresee(sources / name, sources / "no such folder" / target, 4)


@pytest.mark.parametrize(
    ("name", "target", "notes"),
    [
        ("photo.jpg", "a.jpg", ()),
        ("photo.jpg", "a.gif", ("EXIF, XMP, resolution and more than 256 colours not kept",)),
        ("photo.jpg", "a.bmp", ("EXIF and XMP not kept",)),
        ("deep.tif", "a.jpg", ("16 bits not kept",)),
        ("deep.tif", "a.png", ()),
        ("spare.tif", "a.png", ("fourth channel not kept",)),
        ("spare.tif", "a.jpg", ("fourth channel not kept",)),
        ("move.webp", "a.avif", ("number of plays not kept",)),
        ("move.webp", "a.tif", ("times of frames not kept",)),
        ("opaque.gif", "a.jpg", ()),
        ("clear.png", "a.gif", ("more than 256 colours and half transparency not kept",)),
    ],
)
def test_what_is_not_kept_is_said(sources, name, target, notes):
    assert foresee(sources / name, sources / target, 2) == notes


def test_a_background_and_a_limit(sources):
    assert foresee(sources / "clear.png", sources / "a.jpg", 2, background=(1, 2, 3)) == ()
    with pytest.raises(PictureError, match="more than the limit of 0"):
        foresee(sources / "clear.png", sources / "a.png", 2, limit_pixels=71)


def test_memory_of_writing():
    frame = 8000 * 6000 * 3
    assert encoding_bytes("", 8000, 6000, 1, 3) == 0
    assert encoding_bytes("webp", 8000, 6000, 1, 3) >= 2 * frame
    assert encoding_bytes("jpeg", 8000, 6000, 1, 3) < frame / 5
    assert encoding_bytes("png", 80, 60, 50, 3) > encoding_bytes("png", 80, 60, 1, 3) + 50 * 80 * 60 * 3
