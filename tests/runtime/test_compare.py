import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from foveal.images.metadata import Metadata
from foveal.images.picture import Picture
from foveal.runtime.compare import MARK, make_pair, write_page
from foveal.runtime.upscaler import Upscaler


def decoded(uri):
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def upscale(bundles):
    return Upscaler(model=bundles["trims"], engine="onnxruntime", threads=1)


def test_small_picture_is_shown_whole_and_exactly(upscale, natural):
    pixels = natural(20, 30)
    pair = make_pair(upscale, Picture(pixels, alpha=False), "a", "n")
    np.testing.assert_array_equal(np.asarray(decoded(pair.before)), pixels)
    np.testing.assert_array_equal(np.asarray(decoded(pair.after)), upscale(pixels))
    assert (pair.width, pair.height, pair.note) == (60, 40, "n")


def test_of_a_large_picture_the_middle_is_what_the_result_shows_there(upscale, natural, monkeypatch):
    monkeypatch.setattr("foveal.runtime.compare._SHOWN", 600)
    pixels = natural(60, 90)
    pair = make_pair(upscale, Picture(pixels, alpha=False), "a")
    h, w = pair.height // 2, pair.width // 2
    assert h * w <= 600
    assert pair.note == f"the middle, {w}×{h} of 90×60"
    top, left = (60 - h) // 2, (90 - w) // 2
    before, after = np.asarray(decoded(pair.before)), np.asarray(decoded(pair.after))
    np.testing.assert_array_equal(before, pixels[top : top + h, left : left + w])
    whole = upscale(pixels)[2 * top : 2 * (top + h), 2 * left : 2 * (left + w)]
    np.testing.assert_array_equal(after, whole)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_every_kind_of_picture_can_be_shown(channels, upscale, natural):
    pixels = np.concatenate([natural(9, 8)] * 2, axis=2)[..., :channels].astype(np.uint16) * 257
    pair = make_pair(upscale, Picture(pixels, alpha=channels != 1, metadata=Metadata(bits=16)), "a")
    assert decoded(pair.before).size == (8, 9)
    assert decoded(pair.after).size == (16, 18)


def test_page_stands_alone_and_is_safe(upscale, natural, tmp_path):
    pair = make_pair(upscale, Picture(natural(9, 8), alpha=False), "<b>&.png", 'a "note"')
    path = tmp_path / "compare.html"
    write_page(path, [pair, pair], title="T < 1")
    text = path.read_text()
    assert MARK in text[:400]
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;.png" in text
    assert "T &lt; 1" in text
    assert text.count('<input type="range" min="0" max="100"') == 2
    assert "clip-path" in text
    assert "image-rendering: pixelated" in text
    # Nothing is fetched: every source is embedded.
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "{figures}" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["compare.html"]
