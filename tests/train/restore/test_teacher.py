import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal import Upscaler
from foveal.models.restore.luma_sr import LumaSR
from foveal.runtime.bundle import Bundle
from foveal.train.restore.fit import fit
from foveal.train.restore.pairs import Pairs
from foveal.train.restore.recipe import Recipe
from foveal.train.restore.teacher import answers
from foveal.train.run import CheckpointError

pytestmark = pytest.mark.dear("whole trainings with teachers")


def turned(image, turn):
    image = image.transpose(1, 0, 2) if turn & 1 else image
    return image[:: -1 if turn & 2 else 1, :: -1 if turn & 4 else 1]


def back(image, turn):
    image = image[:: -1 if turn & 2 else 1, :: -1 if turn & 4 else 1]
    return image.transpose(1, 0, 2) if turn & 1 else image


@pytest.fixture(scope="module")
def kept(pictures):
    """What is kept of the pictures at ×2."""
    pairs = Pairs.from_folder(pictures, 2, patch=8)
    return Path(pairs.low.filename).parent


def test_answers_are_the_mean_of_eight_ways(kept):
    taught = answers(kept, 2, ["fast_x2"])
    rows, columns = np.load(kept / "shapes.npy")[0]
    low = np.load(kept / "low.npy")[: rows * columns].reshape(rows, columns, 3)
    once = Upscaler(model="fast_x2")
    picture = low.astype(np.float32) / 255
    ways = [back(once(np.ascontiguousarray(turned(picture, turn))), turn) for turn in range(8)]
    whole = (np.min(ways, axis=0) > 0) & (np.max(ways, axis=0) < 1)  # one way alone is clipped, here only their mean
    first = taught[: rows * columns * 4].reshape(rows * 2, columns * 2, 3)[whole]
    assert whole.mean() > 0.5
    assert np.abs(first - 255 * np.mean(ways, axis=0)[whole]).max() < 0.51, "of 255: rounded once"
    assert np.abs(first - 255 * ways[0][whole]).max() > 1, "one way is something else"


def test_answers_are_kept_for_each_set_of_teachers(kept, tmp_path, monkeypatch):
    copy = shutil.copytree(Bundle.load("fast_x2").folder, tmp_path / "again")
    one, two = answers(kept, 2, ["fast_x2"]), answers(kept, 2, ["fast_x2", "balanced_x2"])
    assert not np.array_equal(one, two)
    monkeypatch.setattr("foveal.train.restore.teacher.Upscaler", None)  # nobody is asked again
    assert np.array_equal(answers(kept, 2, [str(copy)]), one)
    assert np.array_equal(answers(kept, 2, ["fast_x2", "balanced_x2"]), two)


def test_stop_in_the_middle_leaves_no_answers(kept, tmp_path, monkeypatch):
    fresh = shutil.copytree(kept, tmp_path / "kept", ignore=shutil.ignore_patterns("taught*"))
    monkeypatch.setattr("foveal.train.restore.teacher._answer", lambda low, teachers: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(fresh, 2, ["balanced_x2"])
    monkeypatch.undo()
    assert answers(fresh, 2, ["balanced_x2"]).max() > 0


def test_a_teacher_named_twice_counts_twice(kept):
    one, other = (answers(kept, 2, [name]).astype(float) for name in ("fast_x2", "balanced_x2"))
    mixed = answers(kept, 2, ["fast_x2", "balanced_x2", "fast_x2"])
    inside = (np.minimum(one, other) > 0) & (np.maximum(one, other) < 255)  # one alone is clipped, here only the mean
    assert np.abs(mixed - (2 * one + other) / 3)[inside].max() < 1.51, "of 255: each rounded once"
    assert np.abs(mixed - (one + other) / 2)[inside].max() > 1.51


def test_teacher_of_another_scale(pictures):
    with pytest.raises(ValueError, match="teacher fast_x3 enlarges 3 times, the recipe 2 times"):
        Pairs.from_folder(pictures, 2, patch=8, teach=partial(answers, teachers=["fast_x3"]))


def test_batch_holds_the_answers_to_its_patches(pictures):
    pairs = Pairs.from_folder(pictures, 2, patch=8, teach=partial(answers, teachers=["fast_x2"]))
    assert pairs.taught.shape == pairs.high.shape
    low, high, taught = replace(pairs, taught=255 - pairs.high).batch(8, np.random.default_rng(0))
    assert np.array_equal(taught, 255 - high)
    for batch, plain in zip((low, high), replace(pairs, taught=None).batch(8, np.random.default_rng(0)), strict=True):
        assert np.array_equal(batch, plain)


def test_a_student_of_the_answers_alone_learns_the_teacher(tmp_path, pictures):
    def trained(share):
        torch.manual_seed(0)
        student = LumaSR(2, channels=4, depth=1, expand=0)
        recipe = Recipe(
            "luma_sr", 2, str(pictures), 200, patch=8, batch=4, fraction=1.0, loss="l2", precision="fp32",
            ema=0.9, teachers=["balanced_x2"], teacher_share=share,
        )  # fmt: skip
        return fit(student, recipe, tmp_path / str(share))

    pairs = Pairs.from_folder(pictures, 2, patch=8, teach=partial(answers, teachers=["balanced_x2"]))
    low, high, taught = (
        torch.from_numpy(a).permute(0, 3, 1, 2) / 255 for a in pairs.batch(64, np.random.default_rng(9))
    )
    students = trained(1.0), trained(0.0)
    with torch.inference_mode():
        of_teacher, of_original = (student(low) for student in students)
    assert (of_teacher - taught).square().mean() < (of_original - taught).square().mean()
    assert (of_original - high).square().mean() < (of_teacher - high).square().mean()


def test_checkpoint_of_other_teachers_is_refused(tmp_path, pictures):
    def recipe(**changes):
        return Recipe("luma_sr", 2, str(pictures), 2, patch=8, batch=2, precision="fp32", **changes)

    fit(LumaSR(2, channels=4, depth=1, expand=0), recipe(), tmp_path)
    with pytest.raises(CheckpointError, match=r"was made with teachers = \[\], the recipe says \['fast_x2'\]"):
        fit(LumaSR(2, channels=4, depth=1, expand=0), recipe(teachers=["fast_x2"]), tmp_path)
