"""ONNX files of other tools: what is rewritten, and what is refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foveal.export.foreign import import_model, imported
from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.onnx import open_onnx
from foveal.runtime.bundle import Bundle
from foveal.runtime.engines import create
from foveal.runtime.upscaler import Upscaler


@pytest.fixture
def picture():
    """Away from where the tiny model rounds up or down."""
    return ((np.random.default_rng(0).integers(0, 64, (2, 3, 9, 12)) + 0.2) / 64).astype(np.float32)


@pytest.fixture
def plain(tmp_path, tiny_onnx, picture):
    """What the usual file makes of the picture."""
    return create("onnxruntime", tiny_onnx("plain.onnx"), 1).run(picture)


@pytest.mark.parametrize(
    ("options", "colours"),
    [
        ({}, ("0-1", "0-1", "rgb")),
        ({"white": 255.0}, ("0-255", "0-255", "rgb")),
        ({"swap": True}, ("0-1", "0-1", "bgr")),
        ({"half": True}, ("0-1", "0-1", "rgb")),
        ({"last": True}, ("0-1", "0-1", "rgb")),
        ({"fixed": True}, ("0-1", "0-1", "rgb")),
        ({"half": True, "last": True, "white": 255.0}, ("0-255", "0-255", "rgb")),
    ],
)
def test_what_is_unusual_is_rewritten(options, colours, tiny_onnx, tmp_path, picture, plain):
    made = import_model(tiny_onnx(**options), tmp_path / "bundle")
    found = made.colours
    assert (found.range_in, found.range_out, found.order_out) == colours
    assert (made.card.scale, made.card.margin, made.card.tiling, made.card.batches) == (2, 1, "exact", True)
    got = create("onnxruntime", tmp_path / "bundle" / "model.onnx", 1).run(picture)
    # Zero padding is black in one range and grey in another, so the edges are the model's own.
    inner = (..., slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(got[inner], plain[inner], atol=2e-3 if "half" in options else 1e-5)


def test_a_range_that_is_stated_is_believed(tiny_onnx, tmp_path, picture, plain):
    import_model(tiny_onnx(low=-1.0), tmp_path / "bundle", colour_range="-1-1")
    got = create("onnxruntime", tmp_path / "bundle" / "model.onnx", 1).run(picture)
    np.testing.assert_allclose(got[..., 2:-2, 2:-2], plain[..., 2:-2, 2:-2], atol=1e-5)


def test_it_upscales_by_path_alone(tiny_onnx):
    path = tiny_onnx()
    large = Upscaler(model=path, engine="onnxruntime")(np.full((7, 5, 3), 99, np.uint8))
    assert large.shape == (14, 10, 3)
    assert abs(large[4:-4, 4:-4].astype(int) - 99).max() <= 3
    assert Bundle.load(path).card.imported["file"] == "tiny.onnx"


def test_weights_beside_the_file_are_taken_in(tiny_onnx, tmp_path, picture, plain):
    path = tiny_onnx()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="tiny.data", size_threshold=0)
    assert (tmp_path / "tiny.data").is_file()
    folder = imported(path)
    (tmp_path / "tiny.data").unlink()
    np.testing.assert_allclose(create("onnxruntime", folder / "model.onnx", 1).run(picture), plain, atol=1e-6)


def external(path, location):
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/b", "..\\secret", ""])
def test_weights_elsewhere_are_not_opened(location, tiny_onnx):
    with pytest.raises(ForeignModelError, match=r"outside its folder; foveal opens files beside the model only"):
        open_onnx(external(tiny_onnx(), location))


def test_weights_that_are_not_there(tiny_onnx):
    with pytest.raises(ForeignModelError, match=r"its weights lie in w.data, which is not beside it; copy both files"):
        open_onnx(external(tiny_onnx(), "w.data"))


def test_a_link_out_of_the_folder_is_not_followed(tiny_onnx, tmp_path):
    (tmp_path / "w.data").symlink_to("/etc/hostname")
    with pytest.raises(ForeignModelError, match=r"which is not beside it"):
        open_onnx(external(tiny_onnx(), "w.data"))


def test_too_few_weights(tiny_onnx, tmp_path):
    (tmp_path / "w.data").write_bytes(b"1234")
    with pytest.raises(ForeignModelError, match=r"tiny.onnx"):
        open_onnx(external(tiny_onnx(), "w.data"))


def test_operators_of_others_are_refused_by_name(tiny_onnx):
    node = helper.make_node("Magic", ["image"], ["x"], domain="their.own")
    path = tiny_onnx(more=[node], domains=["their.own"])
    with pytest.raises(
        ForeignModelError, match=r"operators their.own.Magic are not ONNX's own .* foveal does not load"
    ):
        open_onnx(path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shape": ["n", 1, "h", "w"]}, r"takes 1 channels, foveal runs models of RGB pictures \(3\)"),
        ({"shape": ["n", 3]}, "takes 2 axes, not the four of pictures"),
        (
            {"inputs": [helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [1])]},
            r"takes 2 inputs \(image, sigma\) and gives 1 outputs \(upscaled\); only models from one picture",
        ),
    ],
)
def test_inputs_that_are_no_picture_are_refused(options, text, tiny_onnx):
    with pytest.raises(ForeignModelError, match=text):
        open_onnx(tiny_onnx(**options))


def save(path, nodes, *, kind=TensorProto.FLOAT, out=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", kind, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("out", kind, out)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def test_bytes_are_refused(tmp_path):
    path = save(tmp_path / "a.onnx", [helper.make_node("Identity", ["image"], ["out"])], kind=TensorProto.UINT8)
    with pytest.raises(ForeignModelError, match=r"takes whole numbers, foveal gives floats"):
        open_onnx(path)


def test_a_classifier_is_refused(tmp_path):
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["out"]),
    ]
    with pytest.raises(
        ForeignModelError, match=r"a.onnx: gives 1×3, not a picture; only models from picture to picture"
    ):
        imported(save(tmp_path / "a.onnx", nodes))


def test_what_does_not_resemble_its_picture_is_refused(tmp_path):
    nodes = [helper.make_node("Sign", ["image"], ["out"])]
    with pytest.raises(ForeignModelError, match=r"resembles it in no range or order .* say --range and --order"):
        imported(save(tmp_path / "a.onnx", nodes))


def test_a_graph_that_onnx_runtime_does_not_run_is_refused(tmp_path):
    path = save(tmp_path / "a.onnx", [helper.make_node("NoSuchOperator", ["image"], ["out"])])
    with pytest.raises(ForeignModelError, match=r"ONNX Runtime cannot run it"):
        open_onnx(path)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08"])
def test_what_is_no_onnx_is_refused(data, tmp_path):
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(ForeignModelError, match=r"a.onnx: is no ONNX file"):
        open_onnx(tmp_path / "a.onnx")


def test_one_picture_at_a_time(tmp_path, quick):
    """A graph that fixes the batch is run picture by picture."""
    keep = helper.make_node("Shape", ["image"], ["sides"], start=2)
    head = helper.make_node("Constant", [], ["head"], value_ints=[1, 3])
    nodes = [
        head,
        keep,
        helper.make_node("Concat", ["head", "sides"], ["shape"], axis=0),
        helper.make_node("Reshape", ["image", "shape"], ["out"]),
    ]
    folder = imported(save(tmp_path / "a.onnx", nodes))
    bundle = Bundle.load(folder)
    assert (bundle.card.batches, bundle.card.scale, bundle.card.purpose) == (False, 1, "restoration")
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    restored = Upscaler(model=folder, tile=16, engine="onnxruntime")(picture)
    seen = picture[..., 3] > 0
    assert abs(restored[seen].astype(int) - picture[seen])[picture[seen][:, 3] > 40].max() <= 4
    assert np.array_equal(restored[..., 3], picture[..., 3])
