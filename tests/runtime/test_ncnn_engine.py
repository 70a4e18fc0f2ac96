"""The ncnn engine, where ncnn is installed, and what is said where it is not."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from foveal.runtime import engines, ncnn_engine, throughput
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import Card
from foveal.runtime.engines import EngineError, EngineMemoryError, EngineUnsupportedError, create

DOUBLE = "7767517\n2 2\nInput in 0 1 data\nBinaryOp twice 1 1 data output 0=2 1=1 2=2.0\n"


@pytest.fixture
def pair(tmp_path):
    path = tmp_path / "model.param"
    path.write_text(DOUBLE)
    path.with_suffix(".bin").write_bytes(b"")
    return path


@pytest.fixture
def installed():
    pytest.importorskip("ncnn", reason="ncnn is not installed")


def test_batches_and_odd_sizes(pair, installed):
    x = np.random.default_rng(0).random((3, 3, 5, 7), np.float32)
    engine = create("ncnn", pair, 2, exact=True)
    assert (engine.name, engine.threads, engine.device) == ("ncnn", 2, "cpu")
    np.testing.assert_array_equal(engine.run(x), 2 * x)
    np.testing.assert_array_equal(engine.run(x[:, :, ::2, 1:]), 2 * x[:, :, ::2, 1:])


def test_a_pair_without_its_weights(pair, installed):
    pair.with_suffix(".bin").unlink()
    with pytest.raises(EngineError, match=r"ncnn: model.bin is not beside .*; the bundle is incomplete, copy it again"):
        create("ncnn", pair, 1)


def test_a_text_that_ncnn_does_not_read(pair, installed):
    pair.write_text("1\n")
    with pytest.raises(EngineError, match=r"ncnn: cannot read model.param"):
        create("ncnn", pair, 1)


def test_two_outputs(pair, installed):
    pair.write_text("7767517\n2 3\nInput in 0 1 data\nSplit s 1 2 data a b\n")
    with pytest.raises(EngineError, match=r"has 1 inputs and 2 outputs, one of each is wanted"):
        create("ncnn", pair, 1)


class _Stub:
    """As much of ncnn as an engine calls."""

    def __init__(self, code=0, types=()):
        self.code, self.types, self.devices = code, types, []

    def Net(self):  # noqa: N802 - ncnn's name
        return SimpleNamespace(
            opt=SimpleNamespace(),
            set_vulkan_device=self.devices.append,
            load_param=lambda _: 0,
            load_model=lambda _: 0,
            input_names=lambda: ["in"],
            output_names=lambda: ["out"],
            create_extractor=lambda: SimpleNamespace(input=lambda *_: 0, extract=lambda _: (self.code, np.zeros(3))),
        )

    Mat = staticmethod(lambda _: SimpleNamespace(clone=lambda: None))

    def get_gpu_count(self):
        return len(self.types)

    def get_gpu_info(self, index):
        return SimpleNamespace(type=lambda: self.types[index])


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (-100, EngineMemoryError, "ncnn ran out of memory; a smaller tile"),
        (-1, EngineError, "ncnn failed with code -1"),
    ],
)
def test_failures(code, kind, text, pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", _Stub(code))
    monkeypatch.setattr(ncnn_engine, "gpu", lambda: None)
    engine = ncnn_engine.NcnnEngine(pair, 1, exact=True)
    with pytest.raises(kind, match=text):
        engine.run(np.zeros((1, 3, 4, 4), np.float32))


@pytest.mark.parametrize(("types", "device"), [((), None), ((3,), None), ((3, 0), 1), ((1,), 0)])
def test_a_gpu_is_taken_unless_it_is_the_processor(types, device, pair, monkeypatch):
    stub = _Stub(types=types)
    monkeypatch.setitem(sys.modules, "ncnn", stub)
    monkeypatch.setattr(ncnn_engine, "find_library", lambda _: "libvulkan.so.1")
    ncnn_engine.gpu.cache_clear()
    try:
        engine = ncnn_engine.NcnnEngine(pair, 1, exact=True)
    finally:
        ncnn_engine.gpu.cache_clear()
    assert stub.devices == ([] if device is None else [device])
    assert engine.device == ("cpu" if device is None else f"gpu {device}")


def test_without_a_loader_no_gpu_is_looked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    monkeypatch.setattr(ncnn_engine, "find_library", lambda _: None)
    ncnn_engine.gpu.cache_clear()
    assert ncnn_engine.gpu() is None


def test_each_engine_says_what_it_runs(pair, bundles, monkeypatch):
    with pytest.raises(
        EngineUnsupportedError, match=r"engine onnxruntime runs .onnx files, got model.param; take ncnn"
    ):
        create("onnxruntime", pair, 1)
    with pytest.raises(EngineUnsupportedError, match=r"engine ncnn runs .param files, got model.onnx; take native or"):
        create("ncnn", bundles["same"].file("float"), 1)


def test_without_ncnn_the_command_that_installs_it_is_told(pair, monkeypatch):
    monkeypatch.setattr(throughput, "why_not", lambda name: f"{name} not installed")
    bundle = Bundle(pair.parent, Card(name="other", scale=1, margin=0, trims=False, files={"float": pair.name}))
    with pytest.raises(EngineError, match=r"no engine for other: ncnn not installed"):
        throughput.pick_engine("auto", bundle, 1, "float")


def test_auto_takes_it_for_its_own_files_only(pair, bundles, monkeypatch):
    monkeypatch.setattr(throughput, "why_not", lambda _: "")
    bundle = Bundle(pair.parent, Card(name="other", scale=1, margin=0, trims=False, files={"float": pair.name}))
    assert throughput.pick_engine("auto", bundle, 1, "float") == ("ncnn", "")
    assert engines.engine_kind("ncnn").reads == ".param"
