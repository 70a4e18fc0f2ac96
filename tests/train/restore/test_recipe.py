import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from documents import ROOT, blocks

from foveal.errors import FovealError
from foveal.models import create_model
from foveal.train.restore.recipe import Recipe, RecipeError

GOOD = 'model = "espcn"\nscale = 2\ndata = "pictures"\nsteps = 10\n'


def written(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_file_becomes_a_recipe_and_changes_win(tmp_path):
    path = written(tmp_path, GOOD + "batch = 4\nlr = 1\n\n[arguments]\nin_channels = 1\n")
    recipe = Recipe.read(path, steps=20, data=None)
    assert (recipe.steps, recipe.data, recipe.batch, recipe.lr) == (20, "pictures", 4, 1)
    assert recipe.arguments == {"in_channels": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "step = 3\n", r"unknown key 'step'; keys are model, scale"),
        (GOOD.replace("steps = 10", ""), "steps is missing"),
        (GOOD + 'lr = "small"\n', "lr must be of type float, got 'small'"),
        (GOOD + "batch = true\n", "batch must be of type int, got True"),
        (GOOD + "batch = 0\n", "batch must be at least 1, got 0"),
        (
            GOOD + 'loss = "l3"\n',
            "loss must be one of l1, l2, l2_luma, luma, luma_root, ms-ssim, lasi, perceptual, clean, got 'l3'",
        ),
        (GOOD.replace("scale = 2", "scale = 5"), "scale must be 1, 2, 3 or 4, got 5"),
        (GOOD.replace("scale = 2", "scale = 1"), r"scale 1 needs noise above 0 \(15 for ordinary photographs\)"),
        (GOOD + "noise = -1\n", "noise must be at least 0, got -1"),
        (GOOD + "fraction = 0.0\n", r"fraction must be in \(0, 1\], got 0.0"),
        (GOOD + "refit = -1\n", "refit must be at least 0, got -1"),
        (GOOD + "ema = 1.0\n", r"ema must be in \[0, 1\), got 1.0"),
        (GOOD + "teacher_share = 1.5\n", r"teacher_share must be in \[0, 1\], got 1.5"),
        (GOOD + "teachers = [4]\n", "teachers must be names or folders of bundles, got 4"),
        (GOOD + 'teachers = "fast_x2"\n', r"teachers must be of type list\[str\], got 'fast_x2'"),
        ("model =", "not a TOML file"),
    ],
)
def test_faults_name_the_file_and_the_key(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.read(written(tmp_path, text))
    assert "recipe.toml" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        Recipe.read(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_build_their_networks(path):
    recipe = Recipe.read(path)
    assert recipe.build().scale == recipe.scale


def test_recipes_in_the_documentation_are_recipes(tmp_path):
    found = blocks((ROOT / "docs" / "train.md").read_text(encoding="utf-8"), "toml")
    recipes = [Recipe.read(written(tmp_path, text)) for text in found]
    assert [recipe.scale for recipe in recipes] == [4, 1]


def test_every_key_stands_in_the_documentation():
    table = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    missing = [field.name for field in fields(Recipe) if not re.search(rf"`{field.name}`|^{field.name} =", table, re.M)]
    assert missing == []


def test_first_weights_depend_on_the_seed_alone():
    def first(seed):
        return Recipe("espcn", 2, "pictures", 1, seed=seed).build().first.weight

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = first(0)
    assert torch.equal(torch.rand(2), expected), "other random numbers go on"
    assert torch.equal(one, first(0))
    assert not torch.equal(one, first(1))
    torch.manual_seed(0)
    assert torch.equal(one, create_model("espcn", scale=2).first.weight)


def test_a_network_without_a_scale_is_built_at_scale_1():
    recipe = Recipe("serpent", 1, "pictures", 1, noise=15.0, arguments={"dim": 4, "depths": [1, 1]})
    assert recipe.build().scale == 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("nobody", 2, "pictures", 1), "no model is called 'nobody'"),
        (Recipe("espcn", 2, "pictures", 1, arguments={"width": 3}), "espcn takes scale, in_channels; got 'width'"),
        (Recipe("serpent", 2, "pictures", 1), "serpent takes .* got 'scale'"),
    ],
)
def test_networks_that_cannot_be_built(recipe, message):
    with pytest.raises(RecipeError, match=message):
        recipe.build()
    assert issubclass(RecipeError, FovealError)
