import json

import numpy as np
import pytest
from PIL import Image
from shrunk import classifier_bundle

from foveal.cli.main import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["run", *map(str, arguments)])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


@pytest.fixture
def pictures(tmp_path):
    for name, colour in (("red", (200, 10, 10)), ("blue", (10, 10, 200))):
        Image.new("RGB", (20, 12), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def test_labels_and_probabilities(capsys, pictures):
    classifier_bundle(pictures / "b", labels=("warm", "cold"))
    code, out, _ = run(capsys, pictures / "b", pictures / "red.png", pictures / "blue.png", "--threads", 1)
    assert code == 0
    assert [line.split()[1:] for line in out.splitlines()] == [["warm", "1.00"], ["cold", "1.00"]]


def test_json_holds_all(capsys, pictures):
    classifier_bundle(pictures / "b")
    code, out, _ = run(capsys, pictures / "b", pictures / "blue.png", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["engine"] == "onnxruntime"
    assert found["answers"][0]["label"] == "1"
    assert [name for name, _ in found["answers"][0]["top"]] == ["1", "0"]


def test_a_dense_model_writes_maps(capsys, pictures):
    classifier_bundle(pictures / "b", dense=True)
    assert run(capsys, pictures / "b", pictures / "red.png")[0] == 2
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB").save(pictures / "ramp.png")
    code, out, _ = run(capsys, pictures / "b", pictures / "ramp.png", "-o", pictures / "maps")
    assert code == 0
    assert out.split()[1].endswith("ramp.png")
    made = np.asarray(Image.open(pictures / "maps" / "ramp.png"))
    assert (made.shape, made[0, 0], made[-1, -1]) == ((8, 8), 0, 255)


def test_a_bad_picture_does_not_stop_the_others(capsys, pictures):
    classifier_bundle(pictures / "b", labels=("warm", "cold"))
    (pictures / "no.png").write_text("not a picture")
    code, out, err = run(capsys, pictures / "b", pictures / "no.png", pictures / "red.png")
    assert code == 1
    assert "no.png" in err
    assert "warm" in out


def test_an_engine_that_is_missing_is_said(capsys, pictures, monkeypatch):
    from foveal.runtime import engines

    classifier_bundle(pictures / "b", engine="openvino", exact=False)
    before = engines.why_not
    monkeypatch.setattr(engines, "why_not", lambda name: "not installed" if name == "openvino" else before(name))
    code, _, err = run(capsys, pictures / "b", pictures / "red.png")
    assert code == 0
    assert "openvino, which was fastest where this bundle was made, is missing: not installed" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no bundle 'nothing'"),
        (["fast_x4"], "fast_x4 is for super-resolution; run it with foveal upscale"),
        (["b", "--engine", "abacus"], "engine must be auto or one of"),
    ],
)
def test_what_cannot_be_run_is_one_line(capsys, pictures, monkeypatch, arguments, said):
    classifier_bundle(pictures / "b")
    monkeypatch.chdir(pictures)
    code, _, err = run(capsys, *arguments, "red.png")
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
