import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from foveal.cli.data import data
from foveal.cli.export import export
from foveal.cli.train import train
from foveal.train.restore.recipe import Recipe

pytestmark = pytest.mark.dear("whole runs of the commands: training, torch's export, timing of engines")

RECIPE = """
model = "luma_sr_fast"
scale = 2
data = "{data}"
steps = 4
patch = 8
batch = 2
every = 2
precision = "fp32"

[arguments]
channels = 4
depth = 1
expand = 4
"""


def run(function, *arguments):
    import typer

    app = typer.Typer()
    app.command()(function)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "pictures").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(image).save(folder / "pictures" / "a.png")
    (folder / "recipe.toml").write_text(RECIPE.format(data=folder / "pictures"))
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """What training prints; its run is in `place / "run"`."""
    done = run(train, place / "recipe.toml", "-o", place / "run", "--threads", 1)
    assert done.exit_code == 0, done.output
    return done.output


def test_recipe_to_weights_to_bundle(place, trained):
    assert "luma_sr_fast ×2 · 4 steps · cpu, 1 threads" in trained
    assert "step 4/4 · loss" in trained
    assert (place / "run" / "model.safetensors").exists()
    pictures = place / "pictures"
    done = run(export, place / "run", "-o", place / "bundle", "--quality", "fast", "--int8", pictures, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["card"]["scale"] == 2
    assert report["card"]["model"]["arguments"] == {"channels": 4, "depth": 1, "expand": 4}
    assert report["milliseconds"].keys() >= {"torch", "onnxruntime"}
    assert report["int8_psnr"] > 45
    again = run(export, place / "run", "-o", place / "bundle", "--int8", pictures, "--overwrite")
    assert f"int8: {report['int8_psnr']:.1f} dB from the 8-bit file on {pictures}" in again.output
    again = run(export, place / "run", "-o", place / "bundle")
    assert again.exit_code == 2
    assert "exists" in again.output


def test_a_loss_for_looks_instead_of_the_recipes(place):
    done = run(train, place / "recipe.toml", "-o", place / "looks", "--loss", "ms-ssim", "--steps", 1)
    assert done.exit_code == 0, done.output
    assert json.loads((place / "looks" / "recipe.json").read_text())["loss"] == "ms-ssim"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], "no such recipe"),
        (["{place}/recipe.toml", "--data", "{place}/nothing", "-o", "{place}/x"], "no pictures below it; `foveal data"),
        (["{place}/recipe.toml", "--steps", "0"], "steps must be at least 1, got 0"),
        (
            ["{place}/recipe.toml", "--loss", "l3"],
            "loss must be one of l1, l2, l2_luma, luma, luma_root, ms-ssim, lasi",
        ),
        (["{place}/recipe.toml", "--device", "tpu"], "foveal train: --device must be auto or one of this machine's ("),
    ],
)
def test_faults_of_train(place, arguments, message):
    done = run(train, *(a.format(place=place) for a in arguments))
    assert done.exit_code == 2
    assert message in done.output


def test_a_stop_before_anything_is_saved(place, tmp_path, monkeypatch):
    def stopped(*arguments, **changes):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recipe, "read", stopped)
    done = run(train, place / "recipe.toml", "-o", tmp_path / "run")
    assert done.exit_code == 130
    assert "stopped; nothing was saved yet" in done.output


def test_a_stop_in_the_middle_says_how_to_go_on(place, tmp_path, monkeypatch):
    def stopped(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr("foveal.train.run.Run.log", stopped)
    done = run(train, place / "recipe.toml", "-o", tmp_path / "run")
    assert done.exit_code == 130
    assert f"stopped; run the same command again to resume from {tmp_path / 'run' / 'checkpoint.pt'}" in done.output


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_a_bug_keeps_its_traceback(place, tmp_path, monkeypatch, error):
    def broken(*arguments, **keywords):
        raise error("a bug")

    monkeypatch.setattr("foveal.train.restore.fit.objective", broken)
    done = run(train, place / "recipe.toml", "-o", tmp_path / "run", "--quiet")
    assert isinstance(done.exception, error)
    assert "foveal train" not in done.output


def test_mean_of_several_runs(place, tmp_path):
    assert run(train, place / "recipe.toml", "-o", tmp_path / "a", "--steps", 1, "--quiet").exit_code == 0
    weights = load_file(tmp_path / "a" / "model.safetensors")
    recipe = json.loads((tmp_path / "a" / "recipe.json").read_text())
    (tmp_path / "b").mkdir()
    moved = {n: t + 1 for n, t in weights.items()}
    save_file(moved, tmp_path / "b" / "model.safetensors", metadata={"recipe": json.dumps(recipe)})
    assert run(export, tmp_path / "a", tmp_path / "b", "-o", tmp_path / "mean").exit_code == 0
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert all(np.allclose(mean[n], weights[n] + 0.5, atol=1e-3) for n in weights)
    save_file(weights, tmp_path / "b" / "model.safetensors", metadata={"recipe": json.dumps(recipe | {"model": "x"})})
    done = run(export, tmp_path / "a", tmp_path / "b", "-o", tmp_path / "other")
    assert done.exit_code == 2
    assert "no model is called 'x'" in done.output


@pytest.mark.usefixtures("trained")
def test_faults_of_export(place, tmp_path):
    done = run(export, place / "run", "-o", tmp_path / "b", "--int8", tmp_path)
    assert done.exit_code == 2
    assert "no pictures below it" in done.output
    assert not (tmp_path / "b").exists()
    done = run(export, tmp_path, "-o", tmp_path / "b")
    assert done.exit_code == 2
    assert "holds no model.safetensors; has its training ended?" in done.output
    done = run(export, "no_such_model", "-o", tmp_path / "b")
    assert done.exit_code == 2
    assert "no model is called 'no_such_model'" in done.output


def test_weights_that_are_none_or_fit_nothing(place, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"none")
    done = run(export, path, "-o", tmp_path / "b")
    assert done.exit_code == 2
    assert "is no file of weights" in done.output
    recipe = json.dumps({"model": "espcn", "scale": 2, "arguments": {}})
    save_file({"a": torch.zeros(1)}, path, metadata={"recipe": recipe})
    done = run(export, path, "-o", tmp_path / "b")
    assert done.exit_code == 2
    assert "does not fit espcn, which it names" in done.output
    save_file({"a": torch.zeros(1)}, path)
    done = run(export, path, "-o", tmp_path / "b")
    assert done.exit_code == 2
    assert "does not say which model it is for; export weights written by foveal train" in done.output


def test_only_one_network_can_be_averaged(tmp_path):
    done = run(export, "espcn", "sesr_m5", "-o", tmp_path / "b", "-s", 2)
    assert done.exit_code == 2
    assert "weights can be averaged for one network only, got" in done.output


def test_a_bug_in_an_export_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*arguments, **keywords):
        raise ValueError("a bug")

    monkeypatch.setattr("foveal.export.bundle.deployed", broken)
    done = run(export, "espcn", "-o", tmp_path / "b")
    assert str(done.exception) == "a bug"
    assert "foveal export" not in done.output


def test_a_denoiser_from_recipe_to_bundle(place, tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.cli.export._times", lambda model, result: {})
    text = f'model = "espcn"\nscale = 1\nnoise = 15\ndata = "{place / "pictures"}"\nsteps = 2\npatch = 8\nbatch = 2\n'
    (tmp_path / "denoise.toml").write_text(text + 'precision = "fp32"\n')
    done = run(train, tmp_path / "denoise.toml", "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    done = run(export, tmp_path / "run", "-o", tmp_path / "bundle", "--json")
    card = json.loads(done.output)["card"]
    assert (card["scale"], card["purpose"], card["tiling"], card["margin"]) == (1, "restoration", "exact", 4)


def test_unknown_kind_of_picture(tmp_path):
    done = run(data, tmp_path, "--kind", "cartoons")
    assert done.exit_code == 2
    assert "--kind must be one of all, photographs, textures, got 'cartoons'" in done.output


def test_unknown_package(tmp_path):
    done = run(data, tmp_path, "--only", "wallpaper-of-nobody")
    assert done.exit_code == 2
    assert "no package 'wallpaper-of-nobody'; there are lomiri-wallpapers-16.04" in done.output
