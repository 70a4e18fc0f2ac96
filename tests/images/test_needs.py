import pytest

from foveal import images
from foveal._install import install_hint
from foveal.images import needs
from foveal.images.formats import result_format

_DNG = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\xc6\x01\0\x04\0\0\0\x01\x04\0\0" + bytes(4)
HEADS = {"heic": b"\0\0\0\x18ftypheic" + bytes(20), "jxl": b"\xff\x0a" + bytes(20), "dng": _DNG}
LABELS = {"heic": "HEIC", "jxl": "JPEG XL", "dng": "DNG"}
EXTRAS = {"heic": "heic", "jxl": "jxl", "dng": "raw"}


@pytest.mark.parametrize("format_", HEADS)
def test_without_the_extra_the_error_says_how_to_install_it(tmp_path, monkeypatch, format_):
    monkeypatch.setattr(needs, "find_spec", lambda _: None)
    path = tmp_path / "photo"
    path.write_bytes(HEADS[format_])
    with pytest.raises(images.PictureError) as error:
        images.probe(path)
    assert error.value.wrong.startswith(f"it is a {LABELS[format_]} picture, and reading it needs ")
    assert error.value.wrong.endswith("not installed")
    assert error.value.advice == install_hint(EXTRAS[format_])
    assert needs.readable() == tuple(images.FORMATS)


def test_what_is_only_read_becomes_png():
    assert [result_format(name) for name in ("heic", "jxl", "jpeg")] == ["png", "png", "jpeg"]
    assert needs.why_not("png") == ""
