import csv

import pytest
import torch

from foveal.models.restore.luma_clean import LumaClean
from foveal.models.restore.luma_sr import LumaSR
from foveal.train.restore.fit import fit, validate
from foveal.train.restore.pairs import PicturesError
from foveal.train.restore.recipe import Recipe, RecipeError
from foveal.train.run import CheckpointError

pytestmark = pytest.mark.dear("whole trainings, stopped and resumed")


def tiny(**changes):
    values = {
        "model": "luma_sr",
        "scale": 2,
        "steps": 6,
        "patch": 8,
        "batch": 2,
        "warmup": 2,
        "every": 3,
        "precision": "fp32",
    }
    return Recipe(**values | changes)


def network(seed=0):
    torch.manual_seed(seed)
    return LumaSR(2, channels=4, depth=1, expand=4)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resumed_training_equals_one_that_was_not_stopped(tmp_path, pictures, optimizer):
    recipe = tiny(data=str(pictures), optimizer=optimizer)
    whole = fit(network(), recipe, tmp_path / "whole")
    fit(network(), recipe, tmp_path / "parts", stop_after=4)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = fit(network(seed=7), recipe, tmp_path / "parts")
    assert torch.equal(weights(whole), weights(resumed))
    for run in ("whole", "parts"):
        with (tmp_path / run / "log.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file)][-1] == "6"


def test_loss_falls_and_files_appear(tmp_path, pictures):
    seen = []
    recipe = tiny(data=str(pictures), steps=60, batch=4, every=20, ema=0.9, validation=str(pictures))
    start = network()
    before = validate(start, pictures, 2)
    model = fit(network(), recipe, tmp_path, report=seen.append)
    assert validate(model, pictures, 2) > before + 0.5
    assert seen[-1].step == 60
    assert seen[-1].quality == pytest.approx(validate(model, pictures, 2), abs=1e-3)
    assert seen[-1].left == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoint.pt", "log.csv", "log.png", "model.safetensors", "recipe.json",
    }  # fmt: skip


def test_other_recipe_in_the_same_folder_is_refused_and_nothing_is_lost(tmp_path, pictures):
    fit(network(), tiny(data=str(pictures)), tmp_path)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match="was made with batch = 2, the recipe says 3; use another folder"):
        fit(network(), tiny(data=str(pictures), batch=3), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_damaged_checkpoint(tmp_path, pictures):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"cannot be read .* remove it to train from the beginning"):
        fit(network(), tiny(data=str(pictures)), tmp_path)


def test_start_takes_the_weights_that_fit(tmp_path, pictures):
    fit(network(), tiny(data=str(pictures), scale=2), tmp_path / "first")
    start = str(tmp_path / "first" / "model.safetensors")
    torch.manual_seed(5)
    other = LumaSR(3, channels=4, depth=2, expand=4)
    said = []
    recipe = tiny(data=str(pictures), scale=3, start=start, steps=1, lr=0.0, muon_lr=0.0)
    fit(other, recipe, tmp_path / "second", say=said.append)
    assert said == [f"{start}: 9 weights fit this network; unused: base, tail.weight; new: base, tail.weight"]
    first = LumaSR(2, channels=4, depth=1, expand=4)
    from safetensors.torch import load_file

    first.load_state_dict(load_file(start))
    # Of one layer more: the one before it lets everything through.
    assert torch.allclose(other.body[1].narrow, first.body[0].narrow)
    assert not other.body[0].narrow.any()
    assert other.tail.weight.shape[0] == 9
    with pytest.raises(CheckpointError, match="no such weights to start from"):
        fit(network(), tiny(data=str(pictures), start="none.safetensors"), tmp_path / "third")
    with pytest.raises(CheckpointError, match="none of its weights fits this network; start from another"):
        fit(torch.nn.Conv2d(3, 3, 1), tiny(data=str(pictures), start=start), tmp_path / "fourth")


def test_automatic_precision_picks_one_that_trains(tmp_path, pictures):
    model = fit(network(), tiny(data=str(pictures), precision="auto", steps=2), tmp_path)
    assert torch.isfinite(weights(model)).all()


def test_validation_folder_without_pictures(tmp_path, pictures):
    with pytest.raises(ValueError, match="no pictures for scale 2"):
        validate(network(), tmp_path, 2)
    # refused before the first step, not at the first checkpoint
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            PicturesError, match="no pictures in it to validate on; name another folder, or leave it out"
        ):
            fit(network(), tiny(data=str(pictures), validation=str(folder)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refit_of_a_network_without_a_linear_end_is_refused_before_the_training(tmp_path, pictures):
    with pytest.raises(RecipeError, match=r"refit solves for a last layer that is linear, and Conv2d .* set refit = 0"):
        fit(torch.nn.Conv2d(3, 3, 1), tiny(data=str(pictures), refit=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Denoiser(torch.nn.Module):
    """What two small convolutions take away."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 5, padding=2)
        )
        torch.nn.init.zeros_(self.layers[2].weight)
        torch.nn.init.zeros_(self.layers[2].bias)

    def forward(self, x):
        return x - self.layers(x)


def test_a_recipe_of_scale_1_trains_a_denoiser(tmp_path, pictures):
    recipe = tiny(scale=1, data=str(pictures), noise=30.0, steps=60, batch=4, patch=24, every=60, ema=0.9, loss="l2")
    before = validate(Denoiser(), pictures, 1, noise=30.0)
    assert before == validate(Denoiser(), pictures, 1, noise=30.0), "the same noise each time"
    assert 19 < before < 26  # 20·log10(255 / 30) is 18.6, of luminance more
    model = fit(Denoiser(), recipe, tmp_path)
    assert validate(model, pictures, 1, noise=30.0) > before + 0.5


def test_start_from_a_checkpoint_takes_the_running_average(tmp_path, pictures):
    averaged = fit(network(), tiny(data=str(pictures)), tmp_path / "first", stop_after=4)
    start = str(tmp_path / "first" / "checkpoint.pt")
    again = fit(
        network(seed=9), tiny(data=str(pictures), start=start, steps=1, lr=0.0, muon_lr=0.0), tmp_path / "second"
    )
    torch.testing.assert_close(weights(again), weights(averaged))


@pytest.mark.parametrize("loss", ["luma", "luma_root"])
def test_luminance_alone_trains_as_the_luminance_of_the_colours(loss, tmp_path, pictures):
    class Colours(torch.nn.Module):
        """The same network, which does not say that it can make luminance alone."""

        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return self.network(x)

    recipe = tiny(data=str(pictures), loss=loss, optimizer="adam")
    before = weights(network())
    alone, colours = fit(network(), recipe, tmp_path / "alone"), fit(Colours(), recipe, tmp_path / "colours")
    assert (weights(alone) - before).abs().max() > 1e-3
    torch.testing.assert_close(weights(colours), weights(alone), atol=1e-4, rtol=0)


def test_a_recipe_trains_a_network_that_cleans(tmp_path, pictures):
    recipe = tiny(model="luma_clean_fast", loss="clean", data=str(pictures), patch=12, steps=4)
    torch.manual_seed(0)
    first = LumaClean(2, channels=8, depth=1, expand=0)
    before = weights(first)
    fit(first, recipe, tmp_path / "run")
    assert not torch.equal(weights(first), before)
    torch.manual_seed(0)
    again = LumaClean(2, channels=8, depth=1, expand=0)
    fit(again, recipe, tmp_path / "again", stop_after=2)
    fit(again, recipe, tmp_path / "again")
    assert torch.equal(weights(first), weights(again))


def test_cleaning_is_for_networks_that_are_told_and_damages_by_itself(tmp_path, pictures):
    with pytest.raises(RecipeError, match=r'loss "clean" is for networks that are told .* LumaSR; choose another loss'):
        fit(network(), tiny(data=str(pictures), loss="clean"), tmp_path / "run")
    told = LumaClean(2, channels=8, depth=1, expand=0)
    with pytest.raises(RecipeError, match="set noise and refit to 0"):
        fit(told, tiny(data=str(pictures), loss="clean", noise=5.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
