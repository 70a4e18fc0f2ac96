import csv
import json
from dataclasses import dataclass, field

import pytest
import torch
from safetensors import safe_open
from torch import nn

from foveal.errors import FovealError
from foveal.train.loop import Progress
from foveal.train.run import CheckpointError, Run, start_from


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch: int = 8
    tags: list[str] = field(default_factory=list)


def progress(step, quality=1.0):
    return Progress(step, 4, 0.5, 1.0, 0.0, seconds=step, saved=True, quality=quality)


def test_a_checkpoint_comes_back_for_the_same_recipe_only(tmp_path):
    run = Run(tmp_path, Recipe(4), free=("steps",))
    assert run.resume() is None
    run.save({"step": 2, "model": {"w": torch.ones(1)}})
    assert Run(tmp_path, Recipe(9), free=("steps",)).resume()["model"] == {"w": torch.ones(1)}
    with pytest.raises(CheckpointError, match="was made with batch = 8, the recipe says 2; use another folder"):
        Run(tmp_path, Recipe(4, batch=2), free=("steps",)).resume()
    assert issubclass(CheckpointError, FovealError)


def test_a_checkpoint_of_fewer_keys_was_made_with_their_defaults(tmp_path):
    run = Run(tmp_path, Recipe(4))
    torch.save({"step": 2, "recipe": {"steps": 4}}, run.checkpoint)
    assert run.resume()["step"] == 2
    with pytest.raises(CheckpointError, match=r"was made with tags = \[\], the recipe says \['a'\]"):
        Run(tmp_path, Recipe(4, tags=["a"])).resume()


def test_damaged_checkpoint(tmp_path):
    run = Run(tmp_path, Recipe(4))
    run.checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"cannot be read .* remove it to train from the beginning"):
        run.resume()
    torch.save({"weights": torch.ones(1)}, run.checkpoint)  # of somebody else
    with pytest.raises(CheckpointError, match=r"cannot be read \(KeyError\); remove it"):
        run.resume()


def test_the_log_forgets_what_is_trained_again(tmp_path):
    run = Run(tmp_path / "run", Recipe(4), quality="accuracy")
    run.begin(0)
    for step in (2, 3, 4):
        run.log(progress(step))
    run.begin(3)
    run.log(progress(4, quality=None))
    with (run.folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "3", "4"]
    assert [row["accuracy"] for row in rows] == ["1.000", "1.000", ""]
    assert json.loads((run.folder / "recipe.json").read_text()) == {"steps": 4, "batch": 8, "tags": []}


def test_the_weights_name_their_recipe(tmp_path):
    run = Run(tmp_path, Recipe(4))
    run.begin(0)
    run.log(progress(4))
    run.finish(nn.Linear(2, 1))
    with safe_open(run.weights, "pt") as file:
        assert json.loads(file.metadata()["recipe"])["batch"] == 8
        assert set(file.keys()) == {"weight", "bias"}
    assert (tmp_path / "log.png").exists()
    assert not list(tmp_path.glob("*.part"))


def test_what_nothing_can_start_from(tmp_path):
    with pytest.raises(CheckpointError, match="no such weights to start from"):
        start_from(tmp_path / "none.safetensors", nn.Linear(2, 1))
    for name in ("a.safetensors", "checkpoint.pt"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match=r"cannot be read .* start from a checkpoint.pt or model.safetensors"):
            start_from(tmp_path / name, nn.Linear(2, 1))
