"""int8 files by every library that is installed."""

import sys
import types

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from foveal.shrink.quantize import int8, nncf_int8
from foveal.shrink.quantize.int8 import Quantise, quantise_files
from foveal.shrink.step import ShrinkError, noted


@pytest.fixture
def source(tmp_path):
    """A file of one convolution, for two inputs a call."""
    weight = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, c, 4, 4]) for n, c in (("x", 3), ("y", 1))]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def nncf(monkeypatch):
    """A library that notes what it is given."""
    made = types.SimpleNamespace(seen=[], options={}, wrong=None)

    def quantize(model, data, **options):
        if made.wrong:
            raise RuntimeError(made.wrong)
        made.seen, made.options = [data.change(x) for x in data.items], options
        print("a progress bar")
        return model

    module = types.ModuleType("nncf")
    module.__spec__ = types.SimpleNamespace(name="nncf")
    module.set_log_level = lambda level: None
    module.Dataset = lambda items, change: types.SimpleNamespace(items=items, change=change)
    module.IgnoredScope = lambda types, validate: types
    module.ModelType = types.SimpleNamespace(TRANSFORMER="transformer")
    module.quantize = quantize
    monkeypatch.setitem(sys.modules, "nncf", module)
    return made


INPUTS = torch.arange(7 * 3 * 4 * 4, dtype=torch.float32).view(7, 3, 4, 4)


@pytest.mark.dear("imports ONNX Runtime's quantiser")
def test_every_library_that_is_installed_writes_a_file(source, nncf, capsys):
    found = quantise_files(source, "step1", INPUTS, Quantise(samples=6, skip=("Softmax",)))
    assert {kind: path.name for kind, path in found.items()} == {"int8": "step1_int8.onnx", "nncf": "step1_nncf.onnx"}
    assert all(path.is_file() for path in found.values())
    assert np.array_equal(np.concatenate([x["x"] for x in nncf.seen]), INPUTS[:6].numpy())
    assert nncf.options == {"subset_size": 3, "ignored_scope": ["Softmax"]}
    assert capsys.readouterr().out == ""


def test_one_library_is_named(source, nncf):
    assert list(quantise_files(source, "step1", INPUTS, Quantise(by="nncf"))) == ["nncf"]


def test_a_library_that_fails_is_a_note_while_another_works(source, nncf, monkeypatch):
    nncf.wrong = "no such pattern"
    monkeypatch.setattr(int8, "quantise_file", lambda source, target, inputs, step: None)
    with noted() as notes:
        assert list(quantise_files(source, "step1", INPUTS)) == ["int8"]
    assert notes == ["Quantise: NNCF cannot quantise m.onnx: no such pattern"]
    with pytest.raises(ShrinkError, match=r"NNCF cannot quantise m\.onnx: no such pattern"):
        quantise_files(source, "step1", INPUTS, Quantise(by="nncf"))


def test_a_missing_library_names_the_command(source, monkeypatch):
    monkeypatch.setattr(nncf_int8, "find_spec", lambda name: None)
    assert "nncf is not installed; " in nncf_int8.why_not()
    with pytest.raises(ShrinkError, match="Quantise: nncf is not installed; "):
        quantise_files(source, "step1", INPUTS, Quantise(by="nncf"))


def test_attention_is_said_to_be_there(tmp_path, source, nncf):
    model = onnx.load(source)
    model.graph.node[0].output[0] = "z"
    model.graph.node.append(helper.make_node("Softmax", ["z"], ["y"]))
    onnx.save(model, source)
    quantise_files(source, "step1", INPUTS, Quantise(by="nncf"))
    assert nncf.options["model_type"] == "transformer"


def test_unknown_libraries_are_refused():
    with pytest.raises(ValueError, match="by must be one of auto, onnxruntime, nncf, got 'ort'"):
        Quantise(by="ort")
