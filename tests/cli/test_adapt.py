"""The command: labels in class folders, a few of them, or none; what it writes and what it refuses."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foveal.adapt import Delta
from foveal.cli.main import main

pytestmark = pytest.mark.dear("imports timm and torchvision, and trains")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["adapt", *map(str, arguments)])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def model(classes=2):
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=classes).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapt")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (place / "pictures" / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(level + rng.integers(-30, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "pictures" / name / f"{i}.png")
    save_file(model().state_dict(), place / "two.safetensors")
    save_file(model(10).state_dict(), place / "ten.safetensors")
    return place


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    return tmp_path


GIVEN = ("test_resnet", "--data", "pictures", "--size", "32", "--steps", "10")


def test_a_delta_and_the_folded_weights(capsys, place):
    out, whole = place / "d.safetensors", place / "whole.safetensors"
    code, said, err = run(
        capsys, *GIVEN, "--weights", "two.safetensors", "--method", "head", "-o", out, "--fold", whole
    )
    assert (code, err) == (0, "")
    assert "none: 0.0 kB" in said
    assert f"{out}: head, " in said
    delta, network = Delta.load(out), model()
    assert delta.about["classes"] == ["dark", "light"]
    assert delta.about["model"] == "timm test_resnet"
    delta.fold_(network)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in load_file(whole).items())
    code, _, err = run(capsys, *GIVEN, "--weights", "two.safetensors", "-o", out)
    assert code == 2
    assert "exists; name another file, or replace it with --overwrite" in err


def test_other_classes_get_a_head(capsys, place):
    code, said, _ = run(
        capsys,
        *GIVEN,
        "--weights",
        "ten.safetensors",
        "--method",
        "head",
        "--labels",
        "5",
        "-o",
        place / "d.safetensors",
    )
    assert code == 0
    assert "right" not in said.splitlines()[0]  # the ten classes of the weights are others
    network = model(10)
    Delta.load(place / "d.safetensors").fold_(network)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_without_labels_a_plain_folder_does(capsys, place):
    given = ("test_resnet", "--data", "pictures/dark", "--size", "32", "--steps", "2", "--weights", "two.safetensors")
    code, said, _ = run(capsys, *given, "--labels", "none", "-o", place / "d.safetensors")
    assert code == 0
    assert "rpl: " in said
    assert "right" not in said
    code, _, err = run(capsys, *given, "-o", place / "e.safetensors")
    assert code == 2
    assert "no class folders, so no labels; sort the pictures, or give --labels none" in err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--labels", "some"), "--labels must be a number of at least 1, all or none, got 'some'"),
        (("--method", "magic"), "method must be auto or one of"),
        (("--data", "nowhere"), "nowhere: no folder of class folders"),
    ],
)
def test_what_it_refuses(capsys, place, more, text):
    code, _, err = run(capsys, *GIVEN, "--weights", "two.safetensors", "-o", place / "d.safetensors", *more)
    assert code == 2
    assert text in err
    assert not (place / "d.safetensors").exists()


def test_without_labels_other_classes_are_not_judged(capsys, place):
    given = (*GIVEN, "--weights", "ten.safetensors", "--labels", "none", "--method", "statistics")
    code, said, _ = run(capsys, *given, "-o", place / "d.safetensors")
    assert code == 0
    assert "right" not in said


def test_more_pictures_than_fit(capsys, place, monkeypatch):
    monkeypatch.setattr("foveal.cli.adapt.MOST", 2**10)
    code, _, err = run(capsys, *GIVEN, "--weights", "two.safetensors", "-o", place / "d.safetensors")
    assert code == 2
    assert "pictures of 32×32 take 0.0 GiB of at most 0; learn from fewer with --labels N" in err


def test_it_needs_weights(capsys, place):
    code, _, err = run(capsys, *GIVEN, "-o", place / "d.safetensors")
    assert code == 2
    assert "test_resnet needs --weights FILE.safetensors" in err
