import functools
import json
import operator
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from foveal.measure import cost
from foveal.measure.cost import Cost, Latency, count_macs, count_parameters, latency, measure, measure_onnx, peak_memory


class Attend(nn.Module):
    def forward(self, x):  # (B, 1, N, C)
        return torch.softmax(x @ x.transpose(-1, -2), -1) @ x


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 4)
    assert count_parameters(nn.ModuleList([layer, layer])) == 16


@pytest.mark.parametrize(
    ("model", "shape", "by_hand"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 5, 7), 35 * 27 * 8),
        (nn.Conv2d(3, 8, 3), (2, 3, 5, 7), 2 * 3 * 5 * 27 * 8),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 4, 4), 16 * 9 * 8),
        (nn.Conv2d(4, 6, 5, stride=2, padding=2, groups=2), (1, 4, 8, 8), 16 * 25 * 2 * 6),
        (nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), (1, 8, 6, 6), 36 * 8 * 4 * 16),
        (nn.Linear(10, 4), (3, 5, 10), 15 * 40),
        (Attend(), (2, 1, 6, 4), 2 * 2 * 6 * 6 * 4),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3)), (1, 3, 8, 8), 0),
    ],
)
def test_macs_by_hand(model, shape, by_hand):
    assert count_macs(model, shape) == by_hand


def test_counting_takes_no_memory_and_leaves_the_model_alone():
    model = nn.Conv2d(3, 1, 1).train()
    assert count_macs(model, (1, 3, 100_000, 100_000)) == 3 * 10**10
    assert model.training
    assert model.weight.device.type == "cpu"


def test_latency_takes_the_quartiles_of_the_timed_calls(monkeypatch):
    ticks = iter([0, 9, 10, 11, 20, 22, 30, 33, 40, 44, 50, 55])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    calls = []
    found = latency(lambda: calls.append(1), threads=1, repeats=6, warmup=2)
    # 9, 1, 2, 3, 4, 5
    assert found == Latency(3.5, 2.25, 4.75, 6, 1)
    assert found.spread == pytest.approx(2.5 / 3.5)
    assert len(calls) == 8


def test_latency_sets_torch_threads_for_as_long():
    before = torch.get_num_threads()
    seen = []
    latency(lambda: seen.append(torch.get_num_threads()), threads=before + 1, repeats=1, warmup=0)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        latency(lambda: 1 / 0, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"repeats": 0}, {"warmup": -1}])
def test_latency_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="threads and repeats must be at least 1 and warmup at least 0, got"):
        latency(lambda: None, **wrong)


def test_peak_memory_sees_what_a_call_takes():
    few, many = (peak_memory(functools.partial(np.ones, n * 2**20 // 8)) for n in (1, 200))
    assert few < 20 * 2**20
    assert 190 * 2**20 < many < 230 * 2**20


def test_peak_memory_needs_something_that_can_be_pickled():
    with pytest.raises(ValueError, match=r"needs a function that can be pickled, got .*functools\.partial of one"):
        peak_memory(lambda: None)


def test_peak_memory_tells_what_failed():
    with pytest.raises(RuntimeError, match="failed in the process that measures its memory: ZeroDivisionError"):
        peak_memory(functools.partial(operator.truediv, 1, 0))


def testhigh_water_without_proc(monkeypatch):
    here = cost.high_water()
    monkeypatch.setattr(cost.Path, "exists", lambda _: False)
    assert cost.high_water() == pytest.approx(here, rel=0.5)


def test_measure(monkeypatch):
    monkeypatch.setattr(cost, "peak_memory", lambda fn, *, threads: 3 * 2**20 if fn().shape == (1, 2, 4, 5) else 0)
    model = nn.Conv2d(3, 2, 3, padding=1).train()
    found = measure(model, (1, 3, 4, 5), threads=1, repeats=3, warmup=1)
    assert (found.name, found.parameters, found.macs, found.peak_memory) == ("Conv2d", 56, 20 * 54, 3 * 2**20)
    assert found.latency.repeats == 3
    assert model.training
    data = json.loads(json.dumps(found.to_json()))
    assert data["latency"]["spread"] == found.latency.spread
    assert data["versions"]["torch"] == torch.__version__
    text = found.table()
    for part in ("Conv2d", "1×3×4×5", "3 calls, 1 threads", "3.0 MiB", "parameters     56"):
        assert part in text


def test_what_was_not_measured_is_said():
    found = Cost("m", (1,), 0, None, Latency(0.0, 0.0, 0.0, 1, 1), None)
    assert "not counted" in found.table()
    assert "not measured" in found.table()
    assert found.latency.spread == 0


def test_measure_onnx(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, [1, "h", "w", 3]) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "copy.onnx")
    seen = []
    monkeypatch.setattr(cost, "peak_memory", lambda fn, *, threads: seen.append(fn) or threads)
    found = measure_onnx(tmp_path / "copy.onnx", (1, 4, 5, 3), parameters=7, threads=1, repeats=2)
    assert (found.name, found.parameters, found.macs, found.peak_memory) == ("copy.onnx", 7, None, 1)
    again = __import__("pickle").loads(__import__("pickle").dumps(seen[0]))
    assert again()[0].shape == (1, 4, 5, 3)
    assert again.feed["x"].dtype == np.uint8


def test_the_child_answers_on_a_pipe(monkeypatch, capsys):
    import io
    import pickle

    message = pickle.dumps((list(sys.path), 1, pickle.dumps(functools.partial(int, "3"))))
    monkeypatch.setattr(sys, "stdin", type("In", (), {"buffer": io.BytesIO(message)}))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    cost._child()
    before, after = map(int, capsys.readouterr().out.split())
    assert 0 < before <= after
