import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from foveal.images import Picture
from foveal.runtime.inputs import Size, measure, take
from foveal.runtime.upscaler import Upscaler


@pytest.fixture
def upscale(bundles):
    return Upscaler(model=bundles["trims"], engine="onnxruntime", threads=1, tile=16)


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I;16B")


def pillow(mode):
    image = Image.new("RGBA", (6, 5), (200, 100, 50, 128))
    via = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "I;16": "L", "LAB": "RGB", "I;16B": "I;16"}
    if mode in ("PA", "LAB"):
        return Image.new(mode, (6, 5))
    if mode == "I;16B":
        return Image.frombytes("I;16B", (6, 5), bytes(60))
    return (image.convert(via[mode]) if mode in via else image).convert(mode)


def pictures():
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        for shape in [(5, 6), (5, 6, 1), (5, 6, 2), (5, 6, 3), (5, 6, 4)]:
            yield (rng.random(shape) * (1 if dtype(0.5) else 255)).astype(dtype)
    for mode in MODES:
        yield pillow(mode)
    palette = Image.new("P", (6, 5))
    palette.info["transparency"] = 0
    yield palette
    for channels, dtype in ((1, np.uint8), (4, np.uint16)):
        yield Picture(np.zeros((5, 6, channels), dtype), alpha=channels == 4)


@pytest.mark.parametrize("image", list(pictures()), ids=lambda image: getattr(image, "mode", type(image).__name__))
def test_what_is_measured_is_what_is_taken(image):
    taken = take(image)
    (pixels,) = taken.frames
    assert measure(image) == Size(5, 6, pixels.shape[2], pixels.dtype)
    assert taken.alpha == (pixels.shape[2] in (2, 4))
    again = taken.give([pixels])
    assert type(again) is type(image) or isinstance(again, Image.Image)


def test_tensors_are_measured_as_they_are_taken():
    torch = pytest.importorskip("torch")
    for dtype in (torch.uint8, torch.uint16, torch.float32, torch.float16, torch.bfloat16):
        image = torch.zeros(2, 4, 5, 6, dtype=dtype)
        taken = take(image)
        assert measure(image) == Size(5, 6, 4, taken.frames[0].dtype, frames=2)
        again = taken.give(taken.frames)
        assert (again.dtype, again.shape) == (image.dtype, image.shape)


def test_a_file_is_measured_as_it_is_read(tmp_path):
    Image.new("I;16", (6, 5), 5000).save(tmp_path / "a.png")
    assert measure(tmp_path / "a.png") == Size(5, 6, 1, np.dtype(np.uint16), file_format="png")
    assert measure(str(tmp_path / "a.png")).dtype == take(str(tmp_path / "a.png")).frames[0].dtype


def test_a_plan_of_16_bits_is_calibrated_for_16_bits(upscale):
    image = pillow("I;16")
    assert upscale.plan(image).memory > upscale.plan(pillow("L")).memory
    fresh = Upscaler(model=upscale.bundle, engine="onnxruntime", threads=1)
    fresh.plan(image)
    assert fresh._choice.measured == ("float",)
    assert fresh(image).mode == "I;16"
    fresh.plan(pillow("L"))
    assert fresh._choice.measured == ("float", "uint8")


WRONG = [
    (np.zeros((4, 4), np.int32), TypeError, "pixels must be uint8, uint16 or floating point, got int32; convert"),
    (np.zeros((3,), np.uint8), ValueError, r"an array must be \(H, W\) or .* with C from 1 to 4 .*, got shape \(3"),
    (np.full((4, 4), 200.0), ValueError, r"must be in \[0, 1\], got 200 to 200; divide by 255"),
    (pillow("L").convert("F"), ValueError, "PIL mode F does not say what white is; give an array: uint16, or floats"),
    (pillow("L").convert("I"), ValueError, "PIL mode I does not say what white is"),
    (Image.new("RGB", (0, 3)), ValueError, "a PIL image must not be empty, got 0×3"),
    ([1], TypeError, r"image must be a path, a PIL image, a NumPy array.* got builtins\.list"),
    (None, TypeError, r"image must be a path, .* got builtins\.NoneType"),
    (SimpleNamespace(pixels=1), TypeError, r"image must be a path, .* got types\.SimpleNamespace"),
]  # fmt: skip


@pytest.mark.parametrize(("image", "error", "text"), WRONG, ids=lambda value: type(value).__name__)
def test_a_plan_refuses_what_a_call_refuses(image, error, text, upscale):
    for refuse in (upscale, upscale.plan):
        with pytest.raises(error, match=text):
            refuse(image)


def test_wrong_tensors_are_refused_alike(upscale):
    torch = pytest.importorskip("torch")
    for refuse in (upscale, upscale.plan):
        with pytest.raises(ValueError, match=r"a tensor must be \(C, H, W\) or \(B, C, H, W\).*got \(4, 4\)"):
            refuse(torch.zeros(4, 4))
        with pytest.raises(TypeError, match="pixels must be uint8, uint16 or floating point, got int64"):
            refuse(torch.zeros(3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("size", [(10,), (10, 20, 3), (0, 5), (2.5, 4), ("a", "b"), ()])
def test_a_pair_that_is_no_size_is_refused(size, upscale):
    with pytest.raises(ValueError, match=r"a size must be \(width, height\) in whole pixels, both at least 1, got \("):
        upscale.plan(size)
    assert upscale.plan((10, 20)).height == 20


def test_an_animation_has_a_plan_but_is_no_picture(upscale, tmp_path):
    frames = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    assert upscale.plan(tmp_path / "a.gif").frames == 3
    with pytest.raises(ValueError, match=r"a\.gif: holds 3 frames; upscale_file\(source, target\) does all of them"):
        upscale(tmp_path / "a.gif")


def test_recognising_a_picture_loads_no_library(monkeypatch):
    for name in ("torch", "PIL.Image"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(TypeError, match=r"got builtins\.object"):
        measure(object())
    assert not {"torch", "PIL.Image"} & sys.modules.keys()
