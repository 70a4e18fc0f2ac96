"""`foveal import`: what is printed, and that nothing is made of what cannot be imported."""

import json
import subprocess
import sys

import pytest
from documents import ROOT, load

from foveal.cli.main import main

tiny = load("conftest", ROOT / "tests" / "export" / "foreign")


@pytest.fixture
def model(tmp_path, monkeypatch):
    from foveal.export.foreign import field

    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(field, "_NEAR", 12)
    monkeypatch.setattr(field, "_HEIGHT", 12)
    return tiny.write_onnx(tmp_path / "tiny.onnx", white=255.0)


def run(*words):
    with pytest.raises(SystemExit) as end:
        main(["import", *map(str, words)])
    return end.value.code


def test_what_was_found_is_printed(model, tmp_path, capsys):
    out = tmp_path / "bundle"
    assert run(model, "-o", out, "--licence", "CC0-1.0", "--trained-on", "noise", "--scale", "2") == 0
    said = capsys.readouterr()
    first, second, third = said.out.splitlines()
    assert first.startswith(f"{out}: ONNX, ")
    assert first.endswith("×2, RGB 0-255")
    assert second.startswith("tiles: exact, margin 1; beyond it no value changes by more than ")
    assert third.endswith("licence: CC0-1.0")
    assert said.err.splitlines()[0] == "reading tiny.onnx"
    card = json.loads((out / "card.json").read_text())
    assert (card["licence"], card["data"], card["name"]) == ("CC0-1.0", "noise", "tiny")


def test_json_is_one_document(model, tmp_path, capsys):
    assert run(model, "-o", tmp_path / "bundle", "--json") == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["found"]["range"] == ["0-255", "0-255"]
    assert document["card"]["scale"] == 2
    assert said.err == ""


def test_a_licence_that_is_not_stated_is_said(model, tmp_path, capsys):
    assert run(model, "-o", tmp_path / "bundle") == 0
    assert "licence: not stated (--licence)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--scale", "4"), "tiny.onnx: enlarges by 2, and --scale asks for 4"),
        (("--range", "0-9"), "range must be one of 0-1, 0-255, -1-1, got '0-9'"),
        (("--order", "grb"), "order must be one of rgb, bgr, got 'grb'"),
    ],
)
def test_wrong_wishes(words, text, model, tmp_path, capsys):
    assert run(model, "-o", tmp_path / "bundle", *words) == 2
    assert f"foveal import: {text}" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_what_stands_there_is_kept(model, tmp_path, capsys):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    assert run(model, "-o", out) == 2
    assert "exists; give another place, or overwrite=True (--overwrite)" in capsys.readouterr().err
    assert run(model, "-o", out, "--overwrite") == 2
    assert "is no bundle and is not replaced; give another place" in capsys.readouterr().err
    assert (out / "diary.txt").read_text() == "mine"


def test_a_bundle_is_replaced_when_asked_for(model, tmp_path):
    assert run(model, "-o", tmp_path / "bundle") == 0
    assert run(model, "-o", tmp_path / "bundle", "--overwrite", "--licence", "MIT") == 0
    assert json.loads((tmp_path / "bundle" / "card.json").read_text())["licence"] == "MIT"


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "a model to import must be one of .pth, .pt, "), ("a.onnx", "no such file; give the path of a model")],
)
def test_what_is_no_model(name, text, tmp_path, capsys):
    if name == "a.txt":
        (tmp_path / name).write_text("")
    assert run(tmp_path / name, "-o", tmp_path / "bundle") == 2
    assert text in capsys.readouterr().err


def test_an_imported_bundle_runs_without_torch_and_onnx(model, tmp_path):
    assert run(model, "-o", tmp_path / "bundle") == 0
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'onnx', 'spandrel', 'safetensors')))\n"
        "import numpy as np, foveal\n"
        "upscale = foveal.Upscaler(model='bundle', engine='onnxruntime')\n"
        "print(upscale(np.full((9, 7, 3), 99, np.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "(18, 14, 3)", done.stderr
