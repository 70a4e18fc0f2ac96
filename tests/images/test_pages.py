"""Documents whose pages differ: every page is written, as it is."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import tifffile
from picture_samples import camera, display_p3, smooth
from PIL import Image

from foveal import images
from foveal.images import Info, Metadata, PagesWriter, PictureError, exif, tiff

PAGES = [smooth(48, 64, 3), smooth(40, 64, 3), smooth(30, 20, 1, np.uint16), smooth(9, 8, 4)]
INFOS = tuple(
    Info(page.shape[1], page.shape[0], page.shape[2], 16 if page.dtype == np.uint16 else 8, 1, "tiff") for page in PAGES
)


def metadata():
    return [
        Metadata(bits=info.bits, format="tiff", dpi=(100 * (i + 1), 100), icc=display_p3() if i == 1 else None,
                 exif=exif.upright(camera()) if i == 0 else None)
        for i, info in enumerate(INFOS)
    ]  # fmt: skip


def write(path, **options):
    with PagesWriter(path, INFOS, metadata(), **options) as writer:
        for page in PAGES:
            writer.rows(page[:5])
            writer.rows(page[5:])
    return path


def test_pages_come_back(tmp_path):
    reading = images.read(write(tmp_path / "a.tif"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    assert (reading.frames, reading.info.pages) == (4, INFOS)
    for i, page in enumerate(PAGES):
        picture = reading.frame(i)
        np.testing.assert_array_equal(picture.pixels, page)
        assert picture.metadata.icc == (display_p3() if i == 1 else None)
        assert picture.metadata.dpi == (100 * (i + 1), 100)
    assert reading.metadata.exif is not None
    with Image.open(tmp_path / "a.tif") as image:  # another reader finds them too
        assert image.n_frames == 4
        for i in (3, 0, 1):
            image.seek(i)
            np.testing.assert_array_equal(np.asarray(image), PAGES[i])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert [page.shape[:2] for page in file.pages] == [page.shape[:2] for page in PAGES]


def test_large_documents_are_bigtiff(tmp_path):
    writer = PagesWriter(tmp_path / "a.tif", INFOS, metadata())
    for one in writer._writers:
        one.raw_bytes = 3 << 30
    with writer:
        for page in PAGES:
            writer.rows(page)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    reading = images.read(tmp_path / "a.tif")
    for i, page in enumerate(PAGES):
        np.testing.assert_array_equal(reading.frame(i).pixels, page)


def test_nothing_is_left_of_half_a_document(tmp_path):
    def half(error):
        with PagesWriter(tmp_path / "a.tif", INFOS, metadata()) as writer:
            writer.rows(PAGES[0])
            writer.rows(PAGES[1][:7])
            if error:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half(True)
    with pytest.raises(ValueError, match="the document has 4 pages; write the rows of the others too"):
        half(False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_document_is_safe(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"precious")
    with pytest.raises(PictureError, match="the file exists already"):
        write(tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_bytes() == b"precious"
    write(tmp_path / "a.tif", overwrite=True)
    assert images.probe(tmp_path / "a.tif").frames == 4


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "gif", "bmp"])
def test_other_formats_hold_no_documents(tmp_path, suffix):
    with pytest.raises(
        PictureError, match=r"cannot hold a document of 4 pages; write TIFF, or a file for each page .*--pages split"
    ):
        write(tmp_path / f"a.{suffix}")


def test_rows_beyond_a_page(tmp_path):
    def wrong():
        with PagesWriter(tmp_path / "a.tif", INFOS, metadata()) as writer:
            writer.rows(np.concatenate([PAGES[0], PAGES[0][:1]]))

    with pytest.raises(ValueError, match="the picture has 48 rows, got 49"):
        wrong()


def test_files_that_do_not_fit_together(tmp_path):
    for name, order in (("a", "<"), ("b", ">")):
        tifffile.imwrite(tmp_path / f"{name}.tif", PAGES[0], byteorder=order, photometric="rgb")
    with pytest.raises(ValueError, match="pages of one TIFF must have the same byte order and layout"):
        tiff.append(tmp_path / "a.tif", tmp_path / "b.tif")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_foreign_files_are_put_together_too(tmp_path, order, tile):
    for name, page in (("a", PAGES[0]), ("b", PAGES[1])):
        tifffile.imwrite(tmp_path / f"{name}.tif", page, byteorder=order, photometric="rgb", tile=tile,
                         description="a description that is longer than eight bytes")  # fmt: skip
    tiff.append(tmp_path / "a.tif", tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.pages[0].asarray(), PAGES[0])
        np.testing.assert_array_equal(file.pages[1].asarray(), PAGES[1])
        assert file.pages[1].description.startswith("a description that is longer")


def test_a_loop_of_directories_ends(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PAGES[3], photometric="rgb", extrasamples=["unassalpha"])
    data = bytearray((tmp_path / "a.tif").read_bytes())
    one = tiff.Tiff(data)
    struct.pack_into(one.order + "I", data, one.next_at(one.first), one.first)
    (tmp_path / "a.tif").write_bytes(data)
    assert len(tiff.pages(tmp_path / "a.tif")) == 1


@pytest.mark.parametrize("alike", [True, False])
def test_one_page_as_a_picture_of_its_own(tmp_path, alike):
    sizes = [(12, 8), (12, 8), (12, 8) if alike else (10, 9)]
    pages = [Image.new("RGB", size, (40 * number, 0, 0)) for number, size in enumerate(sizes, 1)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    reading = images.read(tmp_path / "a.tif")
    for number, size in enumerate(sizes):
        page = reading.page(number)
        assert (page.width, page.height, page.frames, page.info.pages) == (*size, 1, ())
        assert page.frame().pixels[0, 0].tolist() == [40 * number + 40, 0, 0]
        assert images.foresee(tmp_path / "a.tif", tmp_path / "a.jpg", 2, page=number) == ()
    with pytest.raises(IndexError, match=r"page must be in 0…2 for .*a\.tif, got 3"):
        reading.page(3)


def test_values_that_entries_share_are_not_copied_for_each():
    values = 1000
    entries = [struct.pack("<HHII", 40000 + one, 4, values, 4) for one in range(50)]
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + bytes(4 * values)
    read = list(tiff.Tiff(data).entries(8))
    assert sum(len(entry.raw) for entry in read) <= len(data)
    assert read[0].count == values


def test_the_first_of_very_many_values_is_read_alone(tmp_path):
    behind = 4 * 1_000_000
    entry = struct.pack("<HHII", 258, 4, behind // 4, 26)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + bytes(behind))
    tracemalloc.start()
    try:
        (page,) = tiff.pages(tmp_path / "a.tif")
        assert tracemalloc.get_traced_memory()[1] < 2 * behind
    finally:
        tracemalloc.stop()
    assert page.tags == {258}


@pytest.mark.parametrize("offset", [1 << 63, 1 << 40])
def test_an_offset_beyond_the_file(tmp_path, offset):
    (tmp_path / "a.tif").write_bytes(b"II+\0" + struct.pack("<HHQ", 8, 0, offset) + bytes(50))
    with pytest.raises(PictureError, match="damaged or truncated"):
        images.probe(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"an offset must be inside the 66 bytes, got {offset}"):
        tiff.Tiff((tmp_path / "a.tif").read_bytes()).number("Q", offset)
