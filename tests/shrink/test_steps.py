import dataclasses

import pytest

from foveal.shrink import steps
from foveal.shrink.distill.distillation import Distil
from foveal.shrink.fold.step import Fold
from foveal.shrink.lowrank.step import LowRank
from foveal.shrink.prune.structure import Prune
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.step import ShrinkError, Step
from foveal.shrink.steps import STEPS, check_order, describe, read_recipe, step_class, untouched
from foveal.shrink.tune import Tune


@dataclasses.dataclass(frozen=True)
class Inside:
    """A step that holds another."""

    step: object


TEXT = """
[[step]]
name = "prune"
keep = 0.5
without = ["stem"]

[[step]]
name = "distil"
steps = 20

[[step]]
name = "quantise"
"""


def test_a_recipe_becomes_frozen_steps():
    first, second, third = read_recipe(TEXT)
    assert first == Prune(keep=0.5, without=("stem",))
    assert isinstance(second, Distil)
    assert second.teacher is untouched
    assert third == Quantise()
    assert [describe(step) for step in (first, second, third)] == [
        "Prune(keep=0.5, without=('stem',))",
        "Distil(teacher=untouched, steps=20)",
        "Quantise()",
    ]


def test_a_recipe_is_read_from_a_file(tmp_path):
    (tmp_path / "r.toml").write_text('[[step]]\nname = "fold"\n')
    assert read_recipe(tmp_path / "r.toml") == [Fold()]


@pytest.mark.parametrize("name", STEPS)
def test_every_step_has_its_class(name):
    assert callable(step_class(name).apply)


def test_other_teachers_are_asked_for():
    (step,) = read_recipe('[[step]]\nname = "distil"\nteacher = "big"\n', teachers=lambda name: name.upper())
    assert step.teacher == "BIG"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[step]]\nname = "pruen"\n', "step 1: no step is called 'pruen'; did you mean 'prune'"),
        ('[[step]]\nname = "prune"\nkep = 1\n', "prune has no field 'kep'; did you mean 'keep'"),
        ('[[step]]\nname = "prune"\n', "prune needs keep"),
        ('[[step]]\nname = "prune"\nkeep = 7\n', r"step 1: prune: keep must be in \(0, 1\], got 7"),
        ('[[step]]\nname = "prune"\nkeep = "half"\n', "step 1: prune: "),
        ("[[step]]\nkeep = 1\n", 'step 1 needs a name, such as name = "prune"'),
        ('[[step]]\nname = "distil"\nteacher = "big"\n', "teacher = 'big' is unknown"),
        ('[[step]]\nname = "distil"\nloss = "mse"\n', "a loss is given from Python"),
        ("x = 1\n\n", r"one or more \[\[step\]\] tables, got 'x'"),
        ("\n\n", r"one or more \[\[step\]\] tables, got none"),
        ("[[step\n", "not TOML"),
        ("nowhere.toml", "nowhere.toml: cannot be read .*; give a TOML file of steps"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(text, said):
    with pytest.raises(ShrinkError, match=said):
        read_recipe(text)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([Quantise(), Prune(keep=0.5)], "Prune after Quantise cannot work: the integers of the file"),
        ([Quantise(), Tune()], "Tune after Quantise cannot work: it would train floats"),
        ([Quantise(), Distil(untouched)], "Distil after Quantise cannot work"),
        ([Quantise(), Quantise()], "there are integers already; put Quantise last"),
        ([LowRank(), Prune(keep=0.5)], "Prune after LowRank cannot work.*put Prune first"),
        ([LowRank(), LowRank()], "LowRank after LowRank cannot work"),
        ([Prune(keep=0.5), "int8"], r"a recipe holds steps such as Prune\(keep=0.5\), got str"),
    ],
)
def test_orders_that_cannot_work_are_refused(order, said):
    with pytest.raises(ShrinkError, match=said):
        check_order(order)


def test_orders_that_work_pass():
    check_order([Distil(untouched), Prune(keep=0.5), Tune(), Fold(), LowRank(), Tune(), Quantise()])
    assert isinstance(Prune(keep=0.5), Step)


def test_the_untouched_teacher_is_no_model():
    with pytest.raises(ShrinkError, match="run the step by foveal"):
        untouched(None)
    assert describe(3) == "3"
    assert describe(Inside(Prune(keep=0.5))) == "Inside(step=Prune(keep=0.5))"
    assert steps.describe(Tune()) == "Tune(steps=500)"
