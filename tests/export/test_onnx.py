import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.export.deployable import ExportError, deployed
from foveal.export.onnx import eight_bit, parity, to_onnx
from foveal.models.restore.luma_sr import LumaSR

pytestmark = pytest.mark.dear("torch's export takes a second")


class Same(nn.Module):
    """A padded network: 5×5, then 3×3, then the shuffle; radius 3."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 4, 5, padding=2)
        self.b = nn.Conv2d(4, channels * 4, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(self.b(torch.tanh(self.a(x))), 2)


@pytest.fixture(scope="module")
def luma():
    torch.manual_seed(0)
    model = LumaSR(3, channels=4, depth=1, expand=4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def session(path):
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def test_file_agrees_with_torch_at_sizes_it_was_not_traced_at(tmp_path):
    model = Same().eval()
    path = str(tmp_path / "m.onnx")  # or a Path, as elsewhere
    to_onnx(model, path, torch.rand(1, 3, 16, 17))
    found = parity(model, path, [(1, 3, 1, 1), (2, 3, 7, 63)])
    assert all(p.relative < 1e-5 for p in found)
    assert found[1].to_json()["shape"] == (2, 3, 7, 63)


def test_the_path_is_looked_at_before_the_work(tmp_path):
    with pytest.raises(ExportError, match=r"none/m.onnx lies in no folder that is there; give a file in a folder"):
        to_onnx(None, str(tmp_path / "none" / "m.onnx"), torch.rand(2, 3, 16, 17))
    with pytest.raises(ExportError, match="is a folder; give a file in a folder that exists"):
        to_onnx(None, tmp_path, torch.rand(2, 3, 16, 17))


def test_parity_notices_other_weights(tmp_path):
    model = Same().eval()
    to_onnx(model, tmp_path / "m.onnx", torch.rand(1, 3, 16, 17))
    with pytest.raises(ExportError, match=r"output is \(1, 3, 16, 16\) where torch gives \(1, 3, 8, 8\) for"):
        parity(nn.Identity(), tmp_path / "m.onnx", [(1, 3, 8, 8)])
    with torch.no_grad():
        model.b.bias += 0.01
    with pytest.raises(ExportError, match=r"differs from torch by .* at \(1, 3, 8, 8\), above 0.0001"):
        parity(model, tmp_path / "m.onnx", [(1, 3, 8, 8)])


def test_eight_bit_file_is_the_rounded_float_file(tmp_path, luma):
    form = deployed(luma)
    network, margin = form.network, form.margin
    to_onnx(network, tmp_path / "f.onnx", torch.rand(1, 3, 20, 20))
    assert eight_bit(tmp_path / "f.onnx", tmp_path / "b.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (2, 13, 17, 3), np.uint8)
    (blocks,) = session(tmp_path / "b.onnx").run(None, {"image": picture})
    n, rows, columns, _ = blocks.shape
    assert (rows, columns) == (13 - 2 * margin, 17 - 2 * margin)
    got = blocks.reshape(n, rows, columns, 3, 3, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, 3 * rows, 3 * columns, 3)
    planes = np.ascontiguousarray(picture.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    (expected,) = session(tmp_path / "f.onnx").run(None, {"image": planes})
    expected = np.clip(expected * 255, 0, 255).transpose(0, 2, 3, 1)
    assert np.abs(got - expected).max() <= 0.5 + 1e-3


def test_eight_bit_needs_a_shuffle_at_the_end(tmp_path):
    to_onnx(nn.Conv2d(3, 3, 1), tmp_path / "f.onnx", torch.rand(1, 3, 8, 8))
    assert not eight_bit(tmp_path / "f.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_file_says_nothing_of_the_machine(tmp_path):
    to_onnx(Same(), tmp_path / "m.onnx", torch.rand(1, 3, 8, 8))
    model = onnx.load(tmp_path / "m.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"site-packages" not in (tmp_path / "m.onnx").read_bytes()


def test_network_that_torch_cannot_export(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ExportError, match="torch cannot export Odd"):
        to_onnx(Odd(), tmp_path / "m.onnx", torch.rand(1, 3, 8, 8))
