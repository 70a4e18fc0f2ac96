"""XMP that points behind the picture is cut; the rest stays as it is."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from picture_samples import smooth
from PIL import Image

from foveal import images
from foveal.images.jpeg import extras
from foveal.images.xmp import orphans_removed

HEAD = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" '
)
TAIL = b"<dc:title>A title</dc:title></rdf:Description></rdf:RDF></x:xmpmeta>"
CONTAINER = b'xmlns:Container="http://ns.google.com/photos/1.0/container/" xmlns:Item="http://ns.google.com/photos/1.0/container/item/"'


def directory(semantic):
    return (
        b'<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">'
        b'<Container:Item Item:Semantic="Primary"/></rdf:li>'
        b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="%s" Item:Length="1940"/></rdf:li></rdf:Seq>'
        b"</Container:Directory>" % semantic
    )


def packet(attributes=b"", elements=b""):
    return HEAD + attributes + b">" + elements + TAIL


GAIN_MAP = packet(
    CONTAINER + b' xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"', directory(b"GainMap")
)
GAIN_ELEMENTS = packet(
    b'xmlns:g="http://ns.adobe.com/hdr-gain-map/1.0/"',
    b"<g:Version>1.0</g:Version>\n<g:GainMapMin><rdf:Seq><rdf:li>0</rdf:li></rdf:Seq></g:GainMapMin><g:Empty/>",
)
MOTION = packet(
    b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1" '
    b'GCamera:MotionPhotoVersion="1" GCamera:BurstID="7" ' + CONTAINER,
    directory(b"MotionPhoto"),
)
MICRO = packet(
    b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MicroVideo=\'1\' GCamera:MicroVideoOffset="999"'
)
EXTENDED = packet(b'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="0123456789ABCDEF"')
DEPTH = packet(b'xmlns:GDepth="http://ns.google.com/photos/1.0/depthmap/" GDepth:Format="RangeInverse"')


@pytest.mark.parametrize(
    ("before", "gone", "names"),
    [
        (GAIN_MAP, b"hdrgm|Container|Item|GainMap|1940", ["gain map"]),
        (GAIN_ELEMENTS, b"g:|hdr-gain-map", ["gain map"]),
        (MOTION, b"MotionPhoto|Container|Item", ["motion photo's video"]),
        (MICRO, b"MicroVideo|GCamera", ["motion photo's video"]),
        (EXTENDED, b"HasExtendedXMP|xmpNote", ["extended XMP"]),
        (DEPTH, b"GDepth|RangeInverse", ["depth map"]),
        (packet(), b"nothing of this kind", []),
        (b"", b"nothing", []),
    ],
)
def test_pointers_go_and_the_rest_stays(before, gone, names):
    import re
    from xml.etree import ElementTree

    after, lost = orphans_removed(before)
    assert lost == names
    assert not re.search(gone, after)
    if before:
        ElementTree.fromstring(after)
        assert b"<dc:title>A title</dc:title>" in after
    assert (b'GCamera:BurstID="7"' in after) == (b"BurstID" in before)
    assert orphans_removed(after) == (after, [])


def segment(marker, data):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def test_a_jpeg_names_what_it_cannot_keep(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(16, 16, 3)).save(path, xmp=GAIN_MAP, comment=b"hello")
    data = path.read_bytes()
    more = [
        segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0"),
        b"\xff" + segment(0xE2, b"MPF\0II*\0"),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)),
        segment(0xEB, b"JP" + bytes(20)),
    ]
    path.write_bytes(data[:2] + b"".join(more) + data[2:] + b"the map")
    want = ("gain map", "extended XMP", "content credentials", "comment")
    metadata = images.read(path).metadata
    assert metadata.left_out == want
    assert b"hdrgm" not in metadata.xmp
    with images.Writer(tmp_path / "b.jpg", 16, 16, 3, metadata) as writer:
        writer.rows(smooth(16, 16, 3))
    names = "gain map, extended XMP, content credentials and comment"
    assert writer.left_out == (f"{names} not kept",)
    assert extras(path)[:2] == ["gain map", "embedded pictures"]
    assert images.read(tmp_path / "b.jpg").metadata.left_out == ()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_data_behind_a_jpeg(tmp_path, options):
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=98, **options)
    whole = path.read_bytes()
    for more, want in ((b"", []), (bytes(100), []), (b"MotionPhoto_Data", ["data behind the picture"])):
        path.write_bytes(whole + more)
        assert extras(path) == want


def test_a_comment_of_a_gif(tmp_path):
    for comment in (b"", b"hello"):
        Image.fromarray(smooth(8, 9, 3)).quantize(8).save(tmp_path / "a.gif", comment=comment)
        assert images.read(tmp_path / "a.gif").metadata.left_out == (("comment",) if comment else ())


@pytest.mark.parametrize(
    "data", [b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xe1\0", b"\xff\xd8ab"]
)
def test_a_cut_jpeg_ends_the_walk(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    assert extras(tmp_path / "a.jpg") == []
