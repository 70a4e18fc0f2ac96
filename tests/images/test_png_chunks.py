"""PNG's texts and colours: what goes in comes out, byte for byte, where readers look for it."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from picture_samples import XMP, smooth
from PIL import Image

from foveal import images
from foveal.images import Metadata, png_chunks
from foveal.images.png_chunks import chunk, encode_text, insert, read, text_of, texts

LATIN = (b"tEXt", b"Schl\xfcssel\0v\xe4lue")
BLANK = (b"tEXt", b"Creation Time\0yesterday")
PACKED = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"exif\n 4\n00"))
WIDE = (b"iTXt", b"prompt\0\1\0de\0Anweisung\0" + zlib.compress("一只猫".encode()))
DAMAGED = (b"zTXt", b"broken\0\0not zlib")
GAMMA = (b"gAMA", struct.pack(">I", 100000))
CODE = (b"cICP", bytes((9, 16, 0, 1)))
STRANGE = (b"vpAg", bytes(9))


def png(path, *chunks, pixels=None):
    """A PNG with chunks before its pixels."""
    Image.fromarray(smooth(8, 9, 3) if pixels is None else pixels).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(chunk(*one) for one in chunks) + data[33:])
    return path


def test_texts_and_colours_come_back_byte_for_byte(tmp_path):
    source = png(tmp_path / "a.png", GAMMA, LATIN, BLANK, PACKED, WIDE, DAMAGED)
    reading = images.read(source)
    assert reading.metadata.comments == (
        ("Schlüssel", "välue"),
        ("Creation Time", "yesterday"),
        ("Raw profile type exif", "exif\n 4\n00"),
        ("prompt", "一只猫"),
    )
    images.write(tmp_path / "b.png", reading.frame())
    assert read(tmp_path / "b.png") == read(source) == ((GAMMA, LATIN, BLANK, PACKED, WIDE, DAMAGED), ())
    with Image.open(tmp_path / "b.png") as image:  # before its pixels are loaded
        assert image.info["Schlüssel"] == "välue"
        assert image.info["prompt"] == "一只猫"
        np.testing.assert_array_equal(np.asarray(image), smooth(8, 9, 3))


def test_texts_come_behind_the_pixels_too(tmp_path):
    path = png(tmp_path / "a.png")
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk(*LATIN) + data[-12:])
    assert read(path) == ((LATIN,), ())


def test_a_text_that_was_taken_away_or_changed_is_not_put_back():
    chunks = (LATIN, BLANK, DAMAGED)
    said = [("Schlüssel", "another"), ("Creation Time", "yesterday")]
    assert texts(chunks, said) == [BLANK, DAMAGED, encode_text("Schlüssel", "another")]
    assert texts((), []) == []


def test_animations_keep_them_too(tmp_path):
    first, second = (Image.fromarray(smooth(8, 9, 3) // i) for i in (1, 2))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second], duration=100)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + chunk(*GAMMA) + chunk(*LATIN) + data[33:])
    reading = images.read(tmp_path / "a.png")
    with images.Writer(tmp_path / "b.png", 9, 8, 3, reading.metadata, frames=2) as writer:
        for i in range(2):
            writer.rows(reading.frame(i).pixels)
    assert read(tmp_path / "b.png")[0] == (GAMMA, LATIN)
    with Image.open(tmp_path / "b.png") as image:
        assert (image.n_frames, image.text) == (2, {"Schlüssel": "välue"})


def test_xmp_is_no_text_and_other_chunks_are_named(tmp_path):
    packet = (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP)
    path = png(tmp_path / "a.png", packet, STRANGE, STRANGE)
    metadata = images.read(path).metadata
    assert metadata.comments == ()
    assert metadata.xmp is not None
    assert metadata.left_out == ("PNG chunk vpAg",)


@pytest.mark.parametrize(
    ("keyword", "text", "want"),
    [
        ("Title", "Zoë", (b"tEXt", b"Title\0Zo\xeb")),
        ("Title", "猫", (b"iTXt", b"Title\0\0\0\0\0" + "猫".encode())),
        ("Schlüssel", "", (b"tEXt", b"Schl\xfcssel\0")),
    ],
)
def test_a_new_text(keyword, text, want):
    assert encode_text(keyword, text) == want
    assert text_of(*want) == (keyword, text)


@pytest.mark.parametrize("keyword", ["", "a" * 80, "猫", "a\0b"])
def test_a_keyword_that_png_does_not_allow(keyword):
    with pytest.raises(ValueError, match=r"keyword of a PNG text must be 1 to 79 letters of Latin-1, got .*; shorten"):
        encode_text(keyword, "")


def test_what_is_no_text():
    assert text_of(*GAMMA) is None
    assert text_of(b"tEXt", b"no end") is None
    assert text_of(b"iTXt", b"cut\0") is None
    assert text_of(*DAMAGED) is None


@pytest.mark.parametrize("block", [1, 64, 1 << 22])
def test_inserting_moves_the_pixels_and_replaces_what_is_there(tmp_path, monkeypatch, block):
    monkeypatch.setattr(png_chunks, "BLOCK", block)
    path = png(tmp_path / "a.png", CODE, BLANK)
    pixels = images.read(path).frame().pixels
    insert(path, [GAMMA, (b"cICP", bytes((1, 13, 0, 1)))], [LATIN])
    assert read(path)[0] == (GAMMA, (b"cICP", bytes((1, 13, 0, 1))), BLANK, LATIN)
    np.testing.assert_array_equal(images.read(path).frame().pixels, pixels)
    with Image.open(path) as image:
        image.verify()
    before = path.read_bytes()
    insert(path, [], [])
    assert path.read_bytes() == before


def test_inserting_needs_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"a\.png: no pixels in this PNG"):
        insert(tmp_path / "a.png", [GAMMA], [])


def test_a_cut_file_ends_the_walk(tmp_path):
    path = png(tmp_path / "a.png", LATIN)
    path.write_bytes(path.read_bytes()[:40])
    assert read(path)[1] == ()


def test_texts_of_ones_own(tmp_path):
    picture = images.Picture(smooth(8, 9, 3), False, Metadata(comments=(("Title", "猫"), ("Ä b", "c"))))
    images.write(tmp_path / "a.png", picture)
    assert images.read(tmp_path / "a.png").metadata.comments == (("Title", "猫"), ("Ä b", "c"))
