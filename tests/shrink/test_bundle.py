"""What is written runs in the light install, and in torch."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from shrunk import tiny

from foveal.runtime.card import BundleError
from foveal.runtime.classify import Classifier, Framing, prepare
from foveal.shrink import load
from foveal.shrink.bundle import save_bundle
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.rebuild import Origin
from foveal.shrink.recipe import shrink
from foveal.shrink.step import ShrinkError


@pytest.mark.dear("exports with torch")
def test_a_result_runs_without_torch_and_comes_back_in_torch(data, one_engine, tmp_path):
    shrunk = shrink(tiny(), [Quantise()], data, threads=1, memory=False, seconds=0.05, insist=True)
    framing = Framing((12, 12), (0.5,) * 3, (0.5,) * 3, labels=("dark", "light"))
    assert save_bundle(shrunk, tmp_path / "b", framing=framing, origin=Origin(), licence="CC0-1.0") == []
    made = sorted(path.name for path in (tmp_path / "b").iterdir())
    reports = ["report.html", "report.json", "report.md"]
    assert made == ["card.json", "model.onnx", "model_int8.onnx", *reports, "torch"]
    torch.testing.assert_close(load(tmp_path / "b")(data.inputs), shrunk.model(data.inputs), rtol=0, atol=0)
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    classify = Classifier(tmp_path / "b", threads=1)
    answer = classify(picture)
    x = torch.from_numpy(prepare(picture, framing))[None]
    wanted = shrunk.model(x).detach().softmax(1)[0]
    assert classify.framing.file == "int8"
    assert answer.label == ("dark", "light")[int(wanted.argmax())]
    assert answer.probability == pytest.approx(float(wanted.max()), abs=0.05)
    assert sum(odds for _, odds in answer.top) == pytest.approx(1)
    with pytest.raises(ShrinkError, match="holds a bundle; give another folder, or overwrite"):
        save_bundle(shrunk, tmp_path / "b", framing=framing)
    said = save_bundle(shrunk, tmp_path / "b", framing=framing, overwrite=True)
    assert said == [line for line in said if line.startswith("torch/ holds weights alone: no builder is known")] != []


def test_pictures_are_resized_cropped_and_normalised():
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, 4:12] = 255
    x = prepare(picture, Framing((8, 8), mean=(0.5, 0, 0), std=(0.5, 1, 2)))
    assert x.shape == (3, 8, 8)
    assert [x[c].mean() for c in range(3)] == [1.0, 1.0, 0.5]
    assert prepare(picture, Framing((4, 4), crop=0.5)).shape == (3, 4, 4)
    grey = Image.fromarray(picture[..., 0])
    np.testing.assert_array_equal(prepare(grey, Framing((8, 8))), prepare(picture, Framing((8, 8))))
    deep = np.dstack([picture, picture[..., :1]]).astype(np.uint16) * 257
    np.testing.assert_array_equal(prepare(deep, Framing((8, 8))), prepare(picture, Framing((8, 8))))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": (0, 4)}, "size must be two whole numbers"),
        ({"size": (4, 4), "std": (0.0, 1, 1)}, "mean and std must be three numbers"),
        ({"size": (4, 4), "crop": 2.0}, r"crop must be in \(0, 1\]"),
        ({"size": (4, 4), "engine": "abacus"}, "engine one of native, onnxruntime"),
    ],
)
def test_a_framing_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(BundleError, match=said):
        Framing(**wrong)


def test_what_is_no_picture_is_refused():
    with pytest.raises(TypeError, match="a picture must be a path, a PIL image or an 8- or 16-bit array"):
        prepare(np.zeros((4, 4, 3)), Framing((4, 4)))


def test_a_bundle_for_pictures_and_a_card_without_framing_are_refused(tmp_path):
    with pytest.raises(BundleError, match="fast_x4 is for super-resolution; run it with foveal upscale"):
        Classifier("fast_x4")
    card = {"name": "c", "scale": 1, "margin": 0, "trims": False, "files": {"float": "a"}, "purpose": "classification"}
    for answer, said in ((None, "does not say how a picture becomes an input"), ({"size": 3}, "cannot be read")):
        (tmp_path / "card.json").write_text(json.dumps(card | {"answer": answer}))
        with pytest.raises(BundleError, match=said):
            Classifier(tmp_path)
