import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveal.runtime import between as module
from foveal.runtime.between import between, checked_perception, looking
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import BundleError, Card
from foveal.runtime.upscaler import Upscaler


def bundle(folder, weight, *, slope=0.5, kernels=("w",), quality="balanced", **changes):
    """A bundle of one convolution and a slope."""
    folder.mkdir()
    entry, leaving = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y"))
    nodes = [
        helper.make_node("Conv", ["x", kernels[0]], ["z"]),
        helper.make_node("LeakyRelu", ["z"], ["y"], alpha=slope),
    ]
    held = [numpy_helper.from_array(np.asarray(weight), kernels[0])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [entry], [leaving], held)), folder / "m.onnx")
    values = {"name": folder.name, "scale": 4, "margin": 1, "trims": True, "files": {"float": "m.onnx"}}
    card = Card(**values | {"quality": quality} | changes)
    (folder / "card.json").write_text(card.to_json())
    return Bundle.load(folder)


def constants(made):
    graph = onnx.load(made.file("float")).graph
    return numpy_helper.to_array(graph.initializer[0]), graph.node[1].attribute[0].f


def test_weights_and_slopes_lie_between(tmp_path):
    a = bundle(tmp_path / "a", np.zeros((1, 3, 3, 3), np.float32), slope=0.0)
    b = bundle(tmp_path / "b", np.ones((1, 3, 3, 3), np.float32), slope=1.0)
    made = between(a, b, 0.25, tmp_path / "kept")
    weight, slope = constants(made)
    assert np.allclose(weight, 0.25)
    assert slope == pytest.approx(0.25)
    assert made.card.name == "a_to_b_0.25"
    assert not made.card.quality
    assert not made.card.model
    assert between(a, b, 0.25, tmp_path / "kept") == made
    assert np.array_equal(constants(between(a, b, 0.0, tmp_path / "kept"))[0], constants(a)[0])
    assert np.array_equal(constants(between(a, b, 1.0, tmp_path / "kept"))[0], constants(b)[0])
    assert len(list((tmp_path / "kept").iterdir())) == 3  # nothing is left half done


def test_networks_of_different_shape_are_refused(tmp_path):
    a = bundle(tmp_path / "a", np.zeros((1, 3, 3, 3), np.float32))
    with pytest.raises(BundleError, match="a and b cannot be mixed: margin is 1 and 2; take two networks of one shape"):
        between(a, bundle(tmp_path / "b", np.zeros((1, 3, 3, 3), np.float32), margin=2), 0.5, tmp_path)
    with pytest.raises(BundleError, match="w differs in shape"):
        between(a, bundle(tmp_path / "c", np.zeros((2, 3, 3, 3), np.float32)), 0.5, tmp_path)
    with pytest.raises(BundleError, match="their graphs differ"):
        between(a, bundle(tmp_path / "d", np.zeros((1, 3, 3, 3), np.float32), kernels=("v",)), 0.5, tmp_path)
    whole = [bundle(tmp_path / name, np.full((1, 3, 3, 3), fill)) for name, fill in (("e", 1), ("f", 2))]
    with pytest.raises(BundleError, match="w is no number between others"):
        between(*whole, 0.5, tmp_path)


def test_a_share_of_looks(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"perception must be in \[0, 1\], got 1.5; 0 is for PSNR, 1 for looks"):
        checked_perception(1.5)
    a = bundle(tmp_path / "a", np.zeros((1, 3, 3, 3), np.float32))
    twin = bundle(tmp_path / "vivid_x4", np.ones((1, 3, 3, 3), np.float32), quality="")
    monkeypatch.setattr(module, "available", lambda: [a, twin])
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    assert looking(a, 0.0) is a
    assert looking(a, 1.0) == twin
    assert np.allclose(constants(looking(a, 0.5))[0], 0.5)
    fast = bundle(tmp_path / "fast", np.zeros((1, 3, 3, 3), np.float32), quality="fast")
    with pytest.raises(BundleError, match="fast has none; there are twins of the balanced networks of scale 4"):
        looking(fast, 0.5)


def test_looks_of_a_model_of_ones_own_are_refused():
    with pytest.raises(ValueError, match=r"perception=0.5 is for shipped networks, got a model too; leave one out"):
        Upscaler(model="fast_x4", perception=0.5)


def test_looks_and_a_budget_do_not_go_together(monkeypatch):
    monkeypatch.setattr("foveal.runtime.upscaler.looking", lambda bundle, _: bundle)
    with pytest.raises(ValueError, match=r"budget=0.5 and perception=0.3 do not go together; leave one out"):
        Upscaler(perception=0.3, budget=0.5)
