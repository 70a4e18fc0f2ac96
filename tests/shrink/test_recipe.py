"""The verb: steps in a row, undone where they are slower, with everything said."""

import dataclasses
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from shrunk import tiny
from torch import nn

import foveal
from foveal.shrink import forms, measured
from foveal.shrink.data import Data, check
from foveal.shrink.distill.distillation import Distil
from foveal.shrink.fold.step import Fold
from foveal.shrink.prune.structure import Prune
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.recipe import StepError, shrink
from foveal.shrink.step import ShrinkError, note
from foveal.shrink.steps import untouched
from foveal.shrink.tune import Tune


def width(model):
    return model[0].out_channels


@dataclasses.dataclass(frozen=True)
class Widen:
    """A step that makes the model larger."""

    def apply(self, model, data=None):
        note("wider now")
        model[0], model[1], model[3] = nn.Conv2d(3, 24, 3, stride=2), nn.BatchNorm2d(24), nn.Conv2d(24, 32, 3, stride=2)
        return model


def test_steps_follow_each_other_and_the_model_given_is_left_alone(pretend, data):
    pretend.times, pretend.score = width, lambda model: 80.0 + width(model)
    model, said = tiny(), []
    shrunk = foveal.shrink(model, [Prune(keep=0.5), Tune(steps=1), Quantise()], data, tell=said.append)
    assert width(model) == 16
    assert width(shrunk.model) == 8
    assert [stage.step for stage in shrunk.stages] == ["untouched", "Prune(keep=0.5)", "Tune(steps=1)", "Quantise()"]
    assert all(stage.kept for stage in shrunk.stages)
    assert shrunk.last.untouched.median == pytest.approx(4 / 16)
    assert shrunk.lost == pytest.approx(-8.0)
    assert set(shrunk.written.files) == {"float", "int8"}
    assert said[1] == "Prune(keep=0.5): 8.00 ms (onnxruntime fp32), 0.50 of untouched, -8.00 points"


def test_a_step_that_makes_the_model_slower_is_undone_and_said_so(pretend, data):
    pretend.times = width
    shrunk = shrink(tiny(), [Widen(), Prune(keep=0.5)], data)
    first, second = shrunk.stages[1:]
    assert not first.kept
    assert first.notes == ("wider now", "undone: 1.50 times the time before it; insist keeps it")
    assert second.kept
    assert width(shrunk.model) == 8


def test_who_insists_keeps_it(pretend, data):
    pretend.times = width
    shrunk = shrink(tiny(), [Widen()], data, insist=True)
    assert shrunk.stages[1].kept
    assert shrunk.stages[1].notes[-1] == "slower, 1.50 times the time before it, and kept because you insist"
    assert width(shrunk.model) == 24


def test_int8_that_is_slower_is_undone(pretend, data, monkeypatch):
    measure = pretend.measure

    def slow(written, data, **options):
        found = measure(written, data, **options)
        if "int8" in options.get("kinds", ()):
            written.opened["onnxruntime int8"] = 30.0
            found = dataclasses.replace(found, previous=dataclasses.replace(found.previous, median=3.0))
        return found

    monkeypatch.setattr("foveal.shrink.recipe.measure_files", slow)
    shrunk = shrink(tiny(), [Quantise()], data)
    assert not shrunk.stages[1].kept
    assert set(shrunk.written.files) == {"float"}


def test_training_cannot_be_undone_by_a_busy_moment(pretend, data):
    times = iter([10.0] * 3 + [99.0] * 9)
    pretend.times = lambda model: next(times)
    assert shrink(tiny(), [Tune(steps=1)], data).stages[1].kept


def test_the_untouched_model_teaches(pretend, data):
    shrunk = shrink(tiny(), [Prune(keep=0.5), Distil(untouched, steps=1)], data)
    assert shrunk.stages[2].step == "Distil(teacher=untouched, steps=1)"


def test_a_step_that_fails_keeps_what_was_reached(pretend, data):
    pretend.times = width
    unlabelled = dataclasses.replace(data, batches=None, loss=None)
    with pytest.raises(StepError, match="step 2 of 2, Tune trains and needs Data with batches and loss") as caught:
        shrink(tiny(), [Prune(keep=0.5), Tune()], unlabelled)
    assert width(caught.value.reached.model) == 8
    assert len(caught.value.reached.stages) == 2


class Coded(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(4, dtype=torch.int8))

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("net", {}, "shrink takes an nn.Module, got str"),
        (nn.Sequential(Coded()), {}, r"quantised already \(0 is a .*Coded\); give the one in floats"),
        (None, {"threads": 0}, "threads and batch must be at least 1"),
        (nn.Linear(3, 2), {}, r"Linear does not take the inputs of shape \(2, 3, 12, 12\)"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(pretend, data, model, options, said):
    with pytest.raises(ShrinkError, match=said):
        shrink(tiny() if model is None else model, [Fold()], data, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": lambda step: torch.zeros(2, 3, 12, 12)}, "must be two tensors, inputs and targets, got Tensor"),
        ({"batches": lambda step: ([1], [2])}, "must be two tensors, inputs and targets, got list, list"),
        ({"batches": lambda step: (torch.zeros(2, 3, 12, 12), torch.zeros(3))}, "2 inputs and 3 targets"),
        ({"batches": lambda step: (torch.zeros(2, 1, 12, 12), torch.zeros(2))}, "does not take training inputs"),
        ({"batches": lambda step: (torch.zeros(2, 3, 12, 12), torch.zeros(2, 9, 9))}, "the loss does not take"),
        ({"loss": lambda out, y: out.sum(1)}, "the loss must be one finite number"),
        ({"inputs": torch.zeros(0, 3, 12, 12)}, "at least one input"),
    ],
)
def test_data_that_yields_the_wrong_thing_is_refused(data, change, said):
    with pytest.raises(ValueError, match=said):
        check(tiny(), dataclasses.replace(data, **change))


def test_data_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"data must be foveal.shrink.data.Data, got list"):
        check(tiny(), [])
    with pytest.raises(ShrinkError, match="must return one tensor, got tuple"):
        check(nn.LSTM(4, 4), Data(torch.zeros(2, 3, 4), lambda _: 0.0))


@pytest.mark.dear("exports with torch and calibrates")
def test_from_a_model_to_files_that_engines_run(data, one_engine, tmp_path):
    steps = [Prune(keep=0.5), Tune(steps=5), Quantise(samples=16)]
    shrunk = shrink(tiny(), steps, data, threads=1, folder=tmp_path, memory=False, seconds=0.05, insist=True)
    assert [stage.kept for stage in shrunk.stages] == [True] * 4
    assert shrunk.last.form == "onnxruntime int8"
    assert shrunk.stages[1].measured.macs < 0.4 * shrunk.first.macs
    assert shrunk.stages[1].measured.size < shrunk.first.size
    answers = measured.Answering(shrunk.written.open(1)["onnxruntime fp32"])(data.inputs)
    torch.testing.assert_close(answers, shrunk.model(data.inputs), rtol=1e-4, atol=1e-4)
    assert 0 < forms.memory(forms.FORMS[0], shrunk.written.files["float"], (1, 3, 12, 12), 1) < 2**28


def test_the_package_is_the_verb_and_its_import_is_light():
    code = (
        "import sys, foveal\nassert callable(foveal.shrink)\nprint([n for n in ('torch', 'numpy') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match=r"module 'foveal.shrink' has no attribute 'squeeze'"):
        _ = foveal.shrink.squeeze
    assert foveal.shrink.Prune is Prune


def test_any_number_of_inputs_goes_through_a_file_of_one_batch():
    class Engine:
        buffer = np.empty((4, 2), np.float32)  # one, used again

        def run(self, x):
            assert x.shape == (4, 3)
            self.buffer[:] = x[:, :2]
            return self.buffer

    opened = types.SimpleNamespace(shape=(4, 3), engine=Engine())
    x = torch.randn(10, 3)
    torch.testing.assert_close(measured.Answering(opened)(x), x[:, :2], rtol=0, atol=0)
