import json

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from foveal.cli.eval import eval as command
from foveal.measure.quality import bicubic, evaluate


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(command)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "Toy"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def test_bicubic(run, pictures):
    result = run("bicubic", "--set", str(pictures), "--scale", "2")
    assert result.exit_code == 0, result.output
    expected = evaluate(bicubic(2), pictures, 2)
    line = result.output.splitlines()[-1].split()
    assert line == ["Toy", "×2", "2", f"{expected.psnr:.2f}", f"{expected.ssim:.4f}"]


def test_weights_name_their_network(run, pictures, tmp_path):
    from foveal.models import create_model

    network = create_model("quicksrnet_small", scale=2)
    path = tmp_path / "model.safetensors"
    recipe = {"model": "quicksrnet_small", "scale": 2, "arguments": {}}
    save_file(network.state_dict(), path, metadata={"recipe": json.dumps(recipe)})
    result = run(str(path), "--set", str(pictures), "--limit", "1", "--json")
    assert result.exit_code == 0, result.output
    (score,) = json.loads(result.output)["scores"]
    assert (score["scale"], score["pictures"]) == (2, 1)
    assert 0 < score["psnr"] < 100
    wrong = run(str(path), "--set", str(pictures), "--scale", "3")
    assert wrong.exit_code == 2
    assert "enlarges by 2, not by 3" in " ".join(wrong.output.split())


def test_a_bundle_goes_through_the_runtime(run, pictures, tmp_path, monkeypatch):
    import foveal.runtime

    class Upscaler:
        scale = 4

        def __init__(self, *, model, threads):
            assert (model, threads) == (str(tmp_path / "bundle"), 1)

        def __call__(self, low):
            return bicubic(4)(low)

    monkeypatch.setattr(foveal.runtime, "Upscaler", Upscaler, raising=False)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "card.json").write_text("{}")
    result = run(str(tmp_path / "bundle"), "--set", str(pictures), "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["scores"] == [evaluate(bicubic(4), pictures, 4).to_json()]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bicubic", "--set", "Set99"], "no benchmark set is called 'Set99'"),
        (["sesr_m6"], "no model is called 'sesr_m6'"),
        (["safmn", "--scale", "3"], "no weights for safmn at scale 3 are shipped"),
    ],
)
def test_what_is_wrong_is_said(run, arguments, text):
    result = run(*arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.output.replace("│", "").split())


def test_restorations(run, pictures):
    options = ["--set", str(pictures), "--limit", "1", "--threads", "1"]
    result = run("restore", "--fix", "noise", "--damage", "noise=25", "--damage", "rain", *options, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert (document["model"], document["fix"], document["bundle"]) == ("restore", "noise", "repair_clean")
    assert [score["damage"] for score in document["scores"]] == ["noise=25", "rain"]
    assert document["scores"][0]["damaged_psnr"] == pytest.approx(20.4, abs=0.7)
    told = run("restore", "--fix", "noise", "--damage", "noise=0", *options)
    assert told.exit_code == 0, told.output
    head, line = (text.split() for text in told.output.splitlines())
    assert head == ["set", "damage", "pictures", "PSNR", "restored", "gain", "SSIM", "restored", "worse", "s/MP"]
    assert line[:4] == ["Toy", "noise=0", "1", "100.00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore"], "what the pictures are restored from is not said; add --damage NAME, such as --damage noise=25"),
        (["restore", "--damage", "mud"], "no degradation is called 'mud'; choose one of noise"),
        (["restore", "--fix", "mud", "--damage", "noise"], "fix must be auto, or of jpeg, noise, rain"),
        (
            ["restore", "--damage", "noise", "--scale", "2"],
            "restore keeps the size of a picture, and --scale asks for 2",
        ),
        (["bicubic", "--damage", "noise"], "--fix and --damage are of restore, and bicubic enlarges; say foveal eval"),
    ],
)
def test_restorations_that_cannot_be(run, pictures, arguments, message):
    result = run(*arguments, "--set", str(pictures))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
