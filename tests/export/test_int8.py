"""The int8 form of a file against the 8-bit one it is made from, in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn

from foveal.export.bundle import export_bundle
from foveal.export.deployable import ExportError, deployed
from foveal.export.int8 import CalibrationError, calibration_pictures, int8
from foveal.export.onnx import eight_bit, to_onnx
from foveal.models.restore.luma_sr import LumaSR

pytestmark = pytest.mark.dear("torch's export, calibration and three engines")

DEPTH = 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = LumaSR(2, channels=8, depth=DEPTH, expand=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.head.bias.sub_(0.3)  # channels that are below 0 but for edges, and others above
    return model


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.random((5, 8, 8, 3)), np.ones((1, 6, 6, 1)))
    return list((255 * np.clip(smooth + 0.03 * rng.standard_normal(smooth.shape), 0, 1)).astype(np.uint8))


@pytest.fixture(scope="module")
def files(model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    form = deployed(model)
    network, margin = form.network, form.margin
    to_onnx(network, folder / "float.onnx", torch.rand(1, 3, 20 + 2 * margin, 21 + 2 * margin))
    assert eight_bit(folder / "float.onnx", folder / "u8.onnx")
    return folder, int8(folder / "u8.onnx", folder / "int8.onnx", pictures)


def run(path, picture):
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": picture[None]})[0][0].astype(float)


def test_it_stays_near_the_floats_and_says_how_near(files, pictures):
    folder, psnr = files
    error = np.mean([np.square(run(folder / "u8.onnx", p) - run(folder / "int8.onnx", p)).mean() for p in pictures])
    assert psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-6)
    assert psnr > 48
    assert error > 0  # it is another file


def test_it_stays_near_them_on_pictures_it_has_not_seen(files):
    folder, _ = files
    picture = np.kron(np.random.default_rng(9).integers(0, 256, (6, 9, 3), np.uint8), np.ones((7, 7, 1), np.uint8))
    assert np.square(run(folder / "u8.onnx", picture) - run(folder / "int8.onnx", picture)).mean() < 1


def test_it_holds_bytes_between_all_convolutions(files):
    graph = onnx.load(files[0] / "int8.onnx").graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    kernels = [node for node in graph.node if node.op_type == "Conv" and makers.get(node.input[1])]
    assert len(kernels) == DEPTH + 1
    for node in kernels:
        rounded, weight = makers[node.input[0]], makers[node.input[1]]
        assert makers[rounded.input[0]].op_type == "QuantizeLinear"
        assert constants[rounded.input[2]].dtype == np.uint8
        assert constants[weight.input[0]].dtype == np.int8
        assert abs(constants[weight.input[0]]).max() == 127


def test_every_channel_fills_its_bytes(files, pictures):
    """And little is cut off; beyond the first layer, what is rounded before may leave less to hold."""
    model = onnx.load(files[0] / "int8.onnx")
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"][:-1]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    spans = []
    for made in zip(*(session.run(names, {"image": picture[None]}) for picture in pictures), strict=True):
        values = np.concatenate([one[0].reshape(one.shape[1], -1) for one in made], axis=1)
        assert (np.isin(values, (0, 255)).mean(1) < 0.02).all()
        spans.append(values.max(1).astype(int) - values.min(1))
    assert (spans[0] == 255).all()
    assert np.mean(spans) > 220


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (12, 200, 90)])
def test_a_flat_picture_becomes_what_it_was(files, colour):
    flat = np.full((20, 20, 3), colour, np.uint8)
    assert np.array_equal(run(files[0] / "int8.onnx", flat), run(files[0] / "u8.onnx", flat))


def before_rounding(path, picture):
    """The result as floats, in levels, (s²·3, h, w)."""
    model = onnx.load(path)
    name = next(node.input[0] for node in model.graph.node if node.output[0] == "blocks")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"image": picture[None]})[0][0] * 255


def test_what_a_flat_picture_makes_is_a_level_in_every_layer(files):
    model = onnx.load(files[0] / "int8.onnx")
    names = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"][:-1]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for colour in (0, 120):
        for made in session.run(names, {"image": np.full((1, 20, 20, 3), colour, np.uint8)}):
            assert abs(255 * made - np.rint(255 * made)).max() < 0.01


def test_errors_have_no_mean_where_a_picture_is_nearly_flat(files):
    picture = np.random.default_rng(3).integers(100, 104, (150, 150, 3)).astype(np.uint8)
    error = before_rounding(files[0] / "int8.onnx", picture) - before_rounding(files[0] / "u8.onnx", picture)
    assert error.std() > 0.02
    assert abs(error.mean((1, 2))).max() < 0.1 * error.std()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 12, 3)],
        [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 12, 3)],
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1)],  # its zeros would not be those of its channels
    ],
    ids=["one", "tanh", "padded"],
)
def test_a_network_without_a_chain_has_none(layers, tmp_path, pictures):
    network = nn.Sequential(*layers, nn.PixelShuffle(2)).eval()
    to_onnx(network, tmp_path / "float.onnx", torch.rand(1, 3, 16, 17))
    assert eight_bit(tmp_path / "float.onnx", tmp_path / "u8.onnx")
    assert int8(tmp_path / "u8.onnx", tmp_path / "int8.onnx", pictures) is None
    assert not (tmp_path / "int8.onnx").exists()


def test_without_pictures_it_says_what_they_are_for(files):
    with pytest.raises(CalibrationError, match="int8 needs calibration pictures, got none; give at least one"):
        int8(files[0] / "u8.onnx", files[0] / "again.onnx", [])


def test_pictures_are_the_middles_of_a_folders(tmp_path):
    for i, (height, width) in enumerate([(60, 600), (600, 60), (40, 40), (400, 500)]):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (width, height), (10 * i, 0, 0)).save(tmp_path / f"{i % 2}" / f"{i}.png")
    found = calibration_pictures(tmp_path, 2, side=64)
    assert sorted(picture.shape for picture in found) == [(20, 20, 3), (30, 64, 3), (64, 30, 3), (64, 64, 3)]
    assert {int(picture[0, 0, 0]) for picture in found} == {0, 10, 20, 30}
    assert len(calibration_pictures(tmp_path, 2, count=2)) == 2
    assert len(calibration_pictures(tmp_path, 2, least=40)) == 1
    with pytest.raises(
        CalibrationError, match="no picture of at least 1000 pixels a side among the 4 found; take larger ones"
    ):
        calibration_pictures(tmp_path, 2, least=500)
    with pytest.raises(CalibrationError, match="no pictures below it"):
        calibration_pictures(tmp_path / "nothing", 2)


def test_export_keeps_it_beside_the_others(model, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 90, 3), np.uint8)).save(tmp_path / "p.png")
    arguments = {"channels": 8, "depth": DEPTH, "expand": 0}
    given = {"name": "b", "model_name": "luma_sr_fast", "scale": 2, "calibration": tmp_path}
    made = export_bundle(model, tmp_path / "b", arguments=arguments, **given)
    assert made.card["files"] == {"float": "model.onnx", "uint8": "model_u8.onnx", "int8": "model_int8.onnx"}
    assert made.card["sha256"].keys() == set(made.card["files"].values())
    assert made.int8_psnr > 45
    monkeypatch.setattr("foveal.export.bundle.LEAST_PSNR", 90.0)
    with pytest.raises(ExportError, match=r"int8 is only \d\d\.\d dB from floats on .*, below 90.0; export without"):
        export_bundle(model, tmp_path / "c", arguments=arguments, **given)
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr("foveal.export.bundle.int8", lambda *a: None)
    with pytest.raises(ExportError, match="luma_sr_fast has no int8 form"):
        export_bundle(model, tmp_path / "c", arguments=arguments, **given)
