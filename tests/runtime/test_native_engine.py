"""foveal's own kernels against ONNX Runtime, and the networks that they must leave to it."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from foveal.runtime.bundle import SHIPPED, available
from foveal.runtime.engines import EngineError, EngineUnsupportedError, create, why_not
from foveal.runtime.plan import pick_engine
from foveal.runtime.upscaler import Upscaler

if reason := why_not("native"):
    pytest.skip(reason, allow_module_level=True)

import foveal_kernels

from foveal.runtime.native_engine import NativeEngine, read_chain

FAST = SHIPPED / "fast_x4"


def picture(shape, kind):
    rng = np.random.default_rng(sum(shape))
    return rng.random(shape, np.float32) if kind == "float" else rng.integers(0, 256, shape, np.uint8)


def shape_for(kind, batch, height, width):
    return (batch, 3, height, width) if kind == "float" else (batch, height, width, 3)


def differ(path, kind, x, **options):
    """Largest difference from ONNX Runtime, and the share of values that differ at all."""
    theirs = create("onnxruntime", path, 1).run(x).astype(np.float64)
    mine = NativeEngine(path, **{"threads": 2, **options}).run(x)
    assert mine.dtype == (np.float32 if kind == "float" else np.uint8)
    assert theirs.std() > 0.01  # or the comparison says nothing
    difference = np.abs(mine - theirs)
    return difference.max(), (difference > 0).mean()


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("bundle", available(), ids=lambda bundle: bundle.card.name)
def test_shipped_bundles_agree_with_onnxruntime(bundle, kind):
    least = 2 * bundle.card.margin + 1
    # One pixel, a part of a tile, a strip and a part, more columns than a chunk of tiles.
    for height, width in [(least, least), (least + 2, least + 5), (least + 12, least + 3), (least + 6, least + 130)]:
        largest, share = differ(bundle.file(kind), kind, picture(shape_for(kind, 1, height, width), kind))
        if kind == "float":
            assert largest < 1e-5
        else:  # what lies on a half may fall to either side
            assert (largest, share) <= (1, 1e-3)


@pytest.mark.parametrize("name", ["avx512", "avx2", "plain"])
@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("bundle", ["fast_x2", "balanced_x3"])  # 16 and 32 channels; 4 and 9 phases fill no register
def test_every_instruction_set_agrees(name, kind, bundle):
    if name not in foveal_kernels.instruction_sets():
        pytest.skip(str(foveal_kernels.why_not(name)))
    path = SHIPPED / bundle / ("model.onnx" if kind == "float" else "model_u8.onnx")
    x = picture(shape_for(kind, 2, 31, 44), kind)
    largest, _ = differ(path, kind, x, library=foveal_kernels.load(name))
    assert largest <= (1e-5 if kind == "float" else 1)


def test_threads_and_other_sizes_between_change_nothing():
    engine = NativeEngine(FAST / "model.onnx", 3)
    x = picture((1, 3, 70, 90), "float")
    first = engine.run(x).copy()
    engine.run(picture((1, 3, 40, 120), "float") * 100)
    assert np.array_equal(engine.run(x), first)
    assert np.array_equal(NativeEngine(FAST / "model.onnx", 1).run(x), first)


def test_a_picture_comes_out_the_same_as_by_another_engine():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    mine, theirs = (
        Upscaler(quality="fast", engine=engine, tile=16)(image).astype(int) for engine in ("native", "onnxruntime")
    )
    assert abs(mine - theirs).max() <= 1


@pytest.mark.parametrize(
    "x", [picture((1, 3, 16, 40), "float"), picture((1, 40, 40, 3), "uint8"), np.zeros((1, 4, 40, 40), np.float32)]
)
def test_wrong_input_is_named(x):
    with pytest.raises(EngineError, match=r"native failed: wanted \(N, 3, h, w\), h and w above 16, of float32, got"):
        NativeEngine(FAST / "model.onnx", 1).run(x)


def node(model, kind, index=0):
    return [n for n in model.graph.node if n.op_type == kind][index]


def change(model, name, edit):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def set_attribute(model, kind, name, value, index=0):
    found = node(model, kind, index)
    kept = [a for a in found.attribute if a.name != name]
    del found.attribute[:]
    found.attribute.extend([*kept, helper.make_attribute(name, value)])


def shorten(model, name):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-1].copy(), name))


CHANGES = {
    "Tanh where LeakyRelu or Relu should be": lambda m: setattr(node(m, "LeakyRelu"), "op_type", "Tanh"),
    "a convolution with pads": lambda m: set_attribute(m, "Conv", "pads", [1, 1, 1, 1], 2),
    "a convolution with strides": lambda m: set_attribute(m, "Conv", "strides", [2, 2], 2),
    "depth to space in another order": lambda m: set_attribute(m, "DepthToSpace", "mode", "DCR"),
    "detail that is not the same for all colours": lambda m: change(m, "spread.weight", lambda a: a.fill(0.5)),
    "a base that differs from colour to colour": lambda m: change(m, "base.weight", lambda a: a[0, 0].fill(0)),
    "a base that mixes colours": lambda m: change(m, "base.weight", lambda a: a[0, 1].fill(0.1)),
    "a base that looks elsewhere": lambda m: node(m, "Conv").input.__setitem__(0, "image"),
    "a bias of": lambda m: shorten(m, "layers.2.bias"),
    "15 channels where 16 are read": lambda m: [shorten(m, f"layers.2.{n}") for n in ("weight", "bias")],
    "a slice that is no border": lambda m: change(m, node(m, "Slice").input[2], lambda a: a.fill(-3)),
}


@pytest.mark.parametrize("text", CHANGES)
def test_another_network_is_left_to_another_engine(text, tmp_path):
    model = onnx.load(FAST / "model.onnx")
    CHANGES[text](model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineUnsupportedError, match=rf"m\.onnx is not a chain .*\({text}.*\); use onnxruntime"):
        read_chain(tmp_path / "m.onnx")


def test_bytes_of_other_levels_are_left_to_another_engine(tmp_path):
    model = onnx.load(FAST / "model_u8.onnx")
    change(model, "level", lambda a: a.fill(1 / 256))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineUnsupportedError, match="levels but n/255"):
        read_chain(tmp_path / "m.onnx")


def test_no_slope_and_relu_are_read(tmp_path):
    model = onnx.load(FAST / "model.onnx")
    relu = node(model, "LeakyRelu")
    relu.op_type = "Relu"
    del relu.attribute[:]
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "m.onnx")
    assert read_chain(tmp_path / "m.onnx").slopes[0] == 0
    assert differ(tmp_path / "m.onnx", "float", picture((1, 3, 30, 30), "float"))[0] < 1e-5


def test_auto_passes_over_it_in_silence_for_other_networks(bundles):
    name, note = pick_engine("auto", bundles["trims"], 1, "float")
    assert name != "native"
    assert note == ""


@pytest.mark.parametrize("name", ["avx512", "avx2", "plain"])
def test_widths_that_fill_no_register(name, tmp_path):
    if name not in foveal_kernels.instruction_sets():
        pytest.skip(str(foveal_kernels.why_not(name)))
    model = onnx.load(FAST / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("layers."):
            array = numpy_helper.to_array(tensor)
            kept = array if tensor.name.startswith("layers.14") else array[:10]
            if kept.ndim == 4 and kept.shape[1] == 16:
                kept = kept[:, :10]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), tensor.name))
    for info in list(model.graph.value_info):
        model.graph.value_info.remove(info)
    onnx.save(model, tmp_path / "m.onnx")
    chain = read_chain(tmp_path / "m.onnx")
    assert {len(weight) for weight in chain.weights} == {10, 16}
    x = picture((1, 3, 33, 61), "float")
    assert differ(tmp_path / "m.onnx", "float", x, library=foveal_kernels.load(name))[0] < 1e-5
