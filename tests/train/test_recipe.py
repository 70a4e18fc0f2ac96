from pathlib import Path

import pytest

from foveal.models import create_model
from foveal.train.recipe import Recipe, RecipeError

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
        (GOOD + 'loss = "l3"\n', "loss must be one of l1, l2, l2_luma, luma, luma_root, got 'l3'"),
        (GOOD.replace("scale = 2", "scale = 5"), "scale must be 2, 3 or 4, got 5"),
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
    model = create_model(recipe.model, scale=recipe.scale, **recipe.arguments)
    assert model.scale == recipe.scale
