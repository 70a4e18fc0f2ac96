"""Exported files of quantised mixers: the integers are in them, and ONNX Runtime computes what torch does."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tolerance import allowed
from torch import nn

from foveal.export.onnx import to_onnx
from foveal.nn.mamba import Mamba
from foveal.shrink.quantize.codes import Codes
from foveal.shrink.quantize.points import Point
from foveal.shrink.quantize.quamba import Quamba
from foveal.shrink.quantize.quamba2 import Quamba2

pytestmark = pytest.mark.dear("torch's export takes a second")

WIDE, NARROW = 192, 12


class OfPictures(nn.Module):
    """A mixer of the places of a picture, (B, C, H, W) to the same."""

    def __init__(self, dim, *, bidirectional=False):
        super().__init__()
        torch.manual_seed(0)
        self.mixers = nn.Sequential(Mamba(dim, bidirectional=bidirectional))

    def forward(self, x):
        return self.mixers(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])


def pictures(dim, seed=0, height=5, width=7):
    return torch.randn(2, dim, height, width, generator=torch.Generator().manual_seed(seed))


class Written:
    """A network, what a step makes of it, and the file of that."""

    def __init__(self, network, step, path, dim):
        self.plain = network.eval()
        self.model = step.apply(copy.deepcopy(network), pictures(dim)) if step else network
        self.path = path
        self.dim = dim
        to_onnx(self.model, path, pictures(dim))
        self.graph = onnx.load(path).graph
        self.stored = [numpy_helper.to_array(tensor) for tensor in self.graph.initializer]
        self.operators = Counter(node.op_type for node in self.graph.node)

    def errors(self):
        """Largest and root mean square difference of the file from torch, and that of torch from the plain network."""
        x = pictures(self.dim, 1, 9, 4)
        options = onnxruntime.SessionOptions()
        # as written: fused 8-bit products saturate on processors without VNNI, which is the engine's rounding
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"image": x.numpy()})
        with torch.no_grad():
            want, plain = self.model(x).numpy(), self.plain(x).numpy()
        size = np.abs(want).max()
        apart, rounding = got - want, want - plain
        return np.abs(apart).max() / size, np.square(apart).mean() ** 0.5, np.square(rounding).mean() ** 0.5


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    steps = {"float": None, "quamba": Quamba(), "quamba2": Quamba2(activation_bits=16)}
    return {name: Written(OfPictures(WIDE), step, folder / f"{name}.onnx", WIDE) for name, step in steps.items()}


@pytest.mark.parametrize("name", ["quamba", "quamba2"])
def test_all_codes_are_in_the_file_and_no_weight_is_in_floats(written, name):
    file = written[name]
    assert {node.domain for node in file.graph.node} == {""}
    codes = [part.packed.numpy() for part in file.model.modules() if isinstance(part, Codes)]
    stored = [array for array in file.stored if array.dtype in (np.int8, np.uint8)]
    # half bytes of less than 8 KiB are unpacked by torch's exporter
    large = [code for code in codes if code.dtype == np.int8 or code.nbytes > 8192]
    assert len(large) >= 4
    for code in large:
        assert any(np.array_equal(code, array) for array in stored), code.shape
    inner = 2 * WIDE  # scales of four bits are one per row, at most one of the gate and one of the input
    assert max(array.size for array in file.stored if array.dtype == np.float32) <= 2 * inner
    assert file.operators["DequantizeLinear"] >= len(codes)


@pytest.mark.parametrize(("name", "most"), [("quamba", 0.28), ("quamba2", 0.18)])
def test_the_file_is_a_quarter_or_less(written, name, most):
    assert written[name].path.stat().st_size < most * written["float"].path.stat().st_size


def test_weights_alone_lose_nothing_more(written):
    largest, _, rounding = written["quamba2"].errors()
    assert rounding > 0
    assert largest < allowed(torch.float32, 2 * WIDE)


def test_rounded_values_differ_only_where_one_lies_between_two_codes(written):
    """Sums in another order put a few values on the other side: far less than the rounding of all of them."""
    file = written["quamba"]
    points = [part for part in file.model.modules() if isinstance(part, Point)]
    assert file.operators["QuantizeLinear"] == len(points) == 9
    _, apart, rounding = file.errors()
    assert apart < 0.3 * rounding


def test_both_directions_groups_and_scales_of_channels(tmp_path):
    step = Quamba2(group_size=8)  # of 12 and of 24 inputs
    file = Written(OfPictures(NARROW, bidirectional=True), step, tmp_path / "narrow.onnx", NARROW)
    assert file.operators["QuantizeLinear"] == 4 + 2 * 5
    _, apart, rounding = file.errors()
    assert apart < 0.3 * rounding


class Points(nn.Module):
    """A point with one scale, then one with a scale for each channel."""

    def __init__(self):
        super().__init__()
        self.one, self.each = Point(axis=-1), Point(axis=1)
        self.one.set(torch.tensor(127 / 64))
        self.each.set(torch.tensor([127 / 8, 127 / 16, 127 / 32]))

    def forward(self, x):
        return self.each(self.one(x).flatten(2))


def test_points_round_as_torch_does(tmp_path):
    to_onnx(Points().eval(), tmp_path / "points.onnx", torch.rand(2, 3, 4, 5))
    # steps of 1/64 and its ties, those of 1/8 to 1/32, and values beyond the ends
    x = torch.arange(-600, 600).view(2, 3, 20, 10) / 128
    session = onnxruntime.InferenceSession(tmp_path / "points.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": x.numpy()})
    assert np.array_equal(got, Points()(x).numpy())
