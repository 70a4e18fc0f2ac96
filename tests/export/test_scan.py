"""Scans in ONNX: standard operators only, the same numbers as torch at lengths other than the traced one."""

import warnings
from copy import deepcopy

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from foveal.catalogue import records
from foveal.export.deployable import ExportError
from foveal.export.onnx import parity, to_onnx
from foveal.ops import selective_scan
from foveal.ops.scan2d import routes, selective_scan2d

pytestmark = pytest.mark.dear("torch's export takes a second")


class Plain(nn.Module):
    """Every argument of the plain scan, from one picture."""

    def __init__(self, *, last_state=False):
        super().__init__()
        self.last_state = last_state
        self.A = nn.Parameter(-torch.rand(6, 3) - 0.1)
        self.D = nn.Parameter(torch.rand(6))

    def forward(self, x):
        u = x.flatten(2)
        weights = u.unflatten(1, (2, 3))
        out = selective_scan(u, u, self.A, weights, weights, self.D, u, self.D, True, self.last_state)
        return out.view_as(x) if not self.last_state else out[0]


class Along(nn.Module):
    """A scan along four routes."""

    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(-torch.rand(24, 2) - 0.1)

    def forward(self, x):
        height, width = x.shape[2:]
        u = x.flatten(2)
        four = u[:, None].expand(-1, 4, -1, -1)
        way = routes("snake", height, width)
        return selective_scan2d(u, four, self.A, four[:, :, :2], four[:, :, 2:4], routes=way).view_as(x)


@pytest.mark.parametrize("build", [Plain, Along])
def test_scans_export_with_free_height_and_width(build, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "scan.onnx"
    to_onnx(build(), path, torch.rand(2, 6, 5, 7))
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "ai.onnx"}
    parity(build_like(build), path, [(2, 6, 5, 7), (1, 6, 9, 15), (3, 6, 1, 1)], tolerance=1e-5)


def test_plain_torch_export_writes_standard_operators_too(tmp_path):
    torch.manual_seed(0)
    model, free = Plain().eval(), torch.export.Dim.DYNAMIC
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.onnx.export(
            model, (torch.rand(2, 6, 5, 7),), dynamo=True, verbose=False, dynamic_shapes=[{0: free, 2: free, 3: free}]
        )
    assert {node.domain for node in program.model_proto.graph.node} <= {"", "ai.onnx"}
    (tmp_path / "scan.onnx").write_bytes(program.model_proto.SerializeToString())
    parity(model, tmp_path / "scan.onnx", [(2, 6, 5, 7), (3, 6, 9, 15), (1, 6, 1, 1)], tolerance=1e-5)


def build_like(build):
    torch.manual_seed(0)
    return build()


def test_the_last_state_is_not_exported(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="torch cannot export Plain"):
        to_onnx(Plain(last_state=True), tmp_path / "scan.onnx", torch.rand(1, 6, 5, 7))
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(NotImplementedError, match="the last state cannot be exported to ONNX; omit return_last_state"):
        Plain(last_state=True)(torch.rand(1, 6, 5, 7))


CASES = [
    (record.method, case)
    for record in records().values()
    if record.module.startswith(
        ("foveal.models.backbone", "foveal.models.restore.hi_mamba", "foveal.models.restore.serpent")
    )
    for case in list(record.method.cases)[:1]
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("method", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_every_state_space_model_exports(method, case, tmp_path):
    torch.manual_seed(0)
    model = method.models[case](**method.cases[case]).eval()
    path, channels = tmp_path / "model.onnx", method.cases[case].get("in_channels", 3)
    x = torch.rand(2, channels, 128, 128)
    to_onnx(model, path, x, output="out")
    onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    # MHS-VM divides by statistics near 0 before training: no engine is nearer than torch to itself in float64.
    with torch.inference_mode():
        narrow, wide = model(x), deepcopy(model).double()(x.double())
    own = float((narrow - wide).abs().max() / wide.abs().max())
    parity(model, path, [(1, channels, 128, 128), (2, channels, 128, 192)], tolerance=max(1e-4, 10 * own))
