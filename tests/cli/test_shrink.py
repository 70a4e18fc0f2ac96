"""The command: what it takes, what it refuses, and that nothing reached is lost."""

import json

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file
from shrunk import Pretend

from foveal.cli.main import main
from foveal.runtime.classify import Framing
from foveal.shrink import load
from foveal.shrink.pictures import labelled, picture_data
from foveal.shrink.step import ShrinkError

pytestmark = pytest.mark.dear("imports timm and torchvision, and prunes")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["shrink", *map(str, arguments)])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


@pytest.fixture
def place(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "r.toml").write_text('[[step]]\nname = "prune"\nkeep = 0.5\n')
    monkeypatch.chdir(tmp_path)
    made = Pretend()
    made.times, made.score = lambda model: float(model.conv1[6].out_channels), lambda model: 90.0
    made.patch(monkeypatch)
    return tmp_path


GIVEN = ("test_resnet", "--weights", "w.safetensors", "--data", "pictures", "--size", "32", "--recipe", "r.toml")


def test_a_result_is_a_model_again(capsys, place):
    code, out, err = run(capsys, *GIVEN, "-o", "small")
    assert (code, err) == (0, "")
    assert "small: 2.00 times as fast as the untouched model in its fastest form, +0.00 points" in out
    card = json.loads((place / "small" / "card.json").read_text())
    assert card["answer"]["labels"] == ["cat", "dog"]
    assert card["answer"]["size"] == [32, 32]
    assert load("small").conv1[6].out_channels == 16
    code, out, _ = run(capsys, "small", "--data", "pictures", "--recipe", "r.toml", "-o", "smaller")
    assert code == 0
    assert load("smaller").conv1[6].out_channels == 8


def test_a_budget_is_searched_and_written(capsys, place):
    code, out, _ = run(capsys, *GIVEN, "-o", "small", "--budget", "latency=0.3", "--keep", "accuracy=-1.0")
    assert code == 0
    assert "about" in out
    assert "s left" in out
    assert "chosen: Prune(keep=" in out
    assert {"frontier.html", "journal.jsonl", "card.json", "torch"} <= {
        path.name for path in (place / "small").iterdir()
    }


def test_a_budget_that_cannot_be_met_names_the_nearest(capsys, place):
    code, _, err = run(capsys, *GIVEN, "-o", "small", "--budget", "0.01")
    assert code == 2
    assert "the fastest" in err
    assert (place / "small" / "frontier.html").is_file()


def test_what_was_reached_is_written_when_a_step_fails(capsys, place):
    (place / "r.toml").write_text('[[step]]\nname = "prune"\nkeep = 0.5\n[[step]]\nname = "lowrank"\nkeep = 0.001\n')
    code, _out, err = run(capsys, *GIVEN, "-o", "small")
    assert code == 2
    assert "step 2 of 2, LowRank: keep = 0.001 cannot be met" in err
    assert "what was reached before it is in small" in err
    assert load("small").conv1[6].out_channels == 16


def test_what_was_reached_is_written_after_ctrl_c(capsys, place, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("foveal.shrink.tune.fit", interrupted)
    (place / "r.toml").write_text('[[step]]\nname = "prune"\nkeep = 0.5\n[[step]]\nname = "tune"\n')
    code, _, err = run(capsys, *GIVEN, "-o", "small")
    assert code == 130
    assert "stopped; what was reached is in small" in err
    assert load("small").conv1[6].out_channels == 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({0: "resnet_of_dreams"}, "no model is called 'resnet_of_dreams'"),
        ({0: "test_vit"}, "w.safetensors does not fit test_vit"),
        ({2: "none.safetensors"}, "none.safetensors: cannot be read as weights"),
        ({2: "r.toml"}, "r.toml: cannot be read as weights"),
        ({4: "nowhere"}, "nowhere: no folder of class folders, and no set; sets are cifar10, imagenette"),
        ({8: "none.toml"}, "none.toml: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_line(capsys, place, change, said):
    given = [change.get(i, word) for i, word in enumerate(GIVEN)]
    code, _, err = run(capsys, *given, "-o", "small")
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--budget", "fast"], "--budget must be latency=NUMBER, got 'fast'"),
        (["--arg", "width"], "--arg must be NAME=VALUE, got 'width'"),
        (["--arg", "num_classes=3"], "w.safetensors does not fit test_resnet"),
    ],
)
def test_options_that_say_nothing_are_refused(capsys, place, more, said):
    code, _, err = run(capsys, *GIVEN, "-o", "small", *more)
    assert code == 2
    assert said in err


def test_a_result_is_not_replaced_unasked(capsys, place):
    (place / "small").mkdir()
    (place / "small" / "card.json").write_text("{}")
    code, _, err = run(capsys, *GIVEN, "-o", "small")
    assert code == 2
    assert "small holds a result; name another folder, or replace it with --overwrite" in err


def test_weights_are_asked_for(capsys, place):
    code, _, err = run(capsys, "test_resnet", "--data", "pictures", "--size", "32", "-o", "small")
    assert code == 2
    assert "test_resnet needs --weights FILE.safetensors" in err


def test_a_folder_is_split_the_same_every_time(place):
    framing = Framing((16, 16))
    first, second = labelled("pictures", framing), labelled("pictures", framing)
    assert len(first.train[0]) + len(first.held[0]) == 24
    assert len(first.held[0]) > 0
    np.testing.assert_array_equal(first.held[0], second.held[0])
    assert first.classes == ("cat", "dog")
    (place / "pictures").rename(place / "all")
    for part in ("train", "val"):
        (place / "split" / part).mkdir(parents=True)
        (place / "all" / "cat").rename(place / "split" / part / "a") if part == "train" else None
    (place / "all" / "dog").rename(place / "split" / "val" / "a")
    with pytest.raises(ShrinkError, match="wanted a folder of pictures for each class, got 1"):
        labelled(str(place / "split"), framing)


def test_batches_depend_on_the_step_alone_and_classes_must_fit(place):
    framing = Framing((16, 16))
    pictures = labelled("pictures", framing)
    data = picture_data(pictures, framing, outputs=2, batch=4)
    (x, y), (again, _) = data.batches(7), data.batches(7)
    assert x.shape == (4, 3, 16, 16)
    assert (x == again).all()
    assert set(y.tolist()) <= {0, 1}
    with pytest.raises(ShrinkError, match="the model tells 5 classes apart, the data has 2"):
        picture_data(pictures, framing, outputs=5)


def test_a_set_that_is_not_here_says_where_it_was_looked_for(place, monkeypatch):
    monkeypatch.setenv("FOVEAL_DATA", str(place))
    for name in ("cifar10", "imagenette"):
        with pytest.raises(FileNotFoundError, match="is not on this machine"):
            labelled(name, Framing((8, 8)))
