import json

import pytest

from foveal.runtime import throughput as module
from foveal.runtime.engines import EngineError, EngineUnsupportedError
from foveal.runtime.machine import cache_folder
from foveal.runtime.throughput import (
    Cache,
    Throughput,
    calibrate,
    file_seconds,
    learn_file_seconds,
    learn_load,
    pick_engine,
    remembered,
)


def test_cache_remembers_and_bears_a_broken_file(tmp_path):
    cache = Cache(tmp_path / "deep" / "c.json")
    assert cache.get("a") is None
    cache.put("a", {"x": 1.5})
    cache.put("b", {"x": 2})
    assert (cache.get("a"), cache.get("b")) == ({"x": 1.5}, {"x": 2})
    assert [p.name for p in cache.path.parent.iterdir()] == ["c.json"]  # no temporary file is left
    for broken in ("", "{", "[1]", '{"a": 3}', '{"a": {"x": "y"}}'):
        cache.path.write_text(broken)
        assert cache.get("a") is None
    cache.put("a", {"x": 3})
    assert cache.get("a") == {"x": 3}


def test_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "c.json")
    cache.put("a", {"x": 1})
    assert cache.get("a") is None


def test_calibration_is_done_once(bundles, monkeypatch):
    opened = []
    create = module.create
    monkeypatch.setattr(module, "create", lambda *a, **k: opened.append(a) or create(*a, **k))
    assert remembered(bundles["trims"], "onnxruntime", 1, "uint8") is None
    found = calibrate(bundles["trims"], "onnxruntime", 1, "uint8")
    assert found.tile == 32
    assert found.seconds > 0
    assert (
        calibrate(bundles["trims"], "onnxruntime", 1, "uint8")
        == found
        == remembered(bundles["trims"], "onnxruntime", 1, "uint8")
    )
    assert len(opened) == 1
    calibrate(bundles["trims"], "onnxruntime", 2, "uint8")
    calibrate(bundles["x3"], "onnxruntime", 1, "float")
    assert len(opened) == 3
    assert all("onnxruntime" in key for key in json.loads((cache_folder() / "calibration.json").read_text()))


def test_auto_takes_the_fastest(bundles, monkeypatch):
    known = {"onnxruntime": Throughput(64, 2.0, 0.1), "openvino": Throughput(64, 1.0, 0.1)}

    def measured(bundle, name, *rest):
        if name not in known:
            raise EngineUnsupportedError(f"{name} is for other networks")
        return known[name]

    monkeypatch.setattr(module, "why_not", lambda name: "")
    monkeypatch.setattr(module, "calibrate", measured)
    assert pick_engine("auto", bundles["trims"], 1, "float") == ("openvino", "")
    known["onnxruntime"] = Throughput(64, 0.5, 0.1)
    assert pick_engine("auto", bundles["trims"], 1, "float") == ("onnxruntime", "")
    # A tile with little margin may win over one that computes each pixel faster.
    known.update(onnxruntime=Throughput(4, 1.0, 0.1), openvino=Throughput(64, 1.1, 0.1))
    assert pick_engine("auto", bundles["trims"], 1, "float")[0] == "openvino"
    known["native"] = Throughput(64, 0.1, 0.1)
    assert pick_engine("auto", bundles["trims"], 1, "float") == ("native", "")


def test_auto_goes_round_an_engine_that_fails(bundles, monkeypatch):
    def one_fails(bundle, name, *rest):
        if name == "openvino":
            raise EngineError("openvino failed: no")
        if name == "native":
            raise EngineUnsupportedError("for other networks")
        return Throughput(64, 1.0, 0.1)

    monkeypatch.setattr(module, "why_not", lambda name: "")
    monkeypatch.setattr(module, "calibrate", one_fails)
    assert pick_engine("auto", bundles["trims"], 1, "float") == ("onnxruntime", "openvino failed: no")

    def both_fail(bundle, name, *rest):
        raise EngineError(f"{name} failed: no")

    monkeypatch.setattr(module, "calibrate", both_fail)
    with pytest.raises(EngineError, match="no engine runs this bundle: native failed: no; onnxruntime failed: no; "):
        pick_engine("auto", bundles["trims"], 1, "float")


def test_engines_that_are_not_there(bundles, monkeypatch):
    monkeypatch.setattr(module, "why_not", lambda name: f"{name} not installed; pip install {name}")
    with pytest.raises(EngineError, match="engine openvino: openvino not installed; pip install openvino"):
        pick_engine("openvino", bundles["trims"], 1, "float")
    with pytest.raises(EngineError, match="no engine for tiny: onnxruntime not installed"):
        pick_engine("auto", bundles["trims"], 1, "float")


def test_seconds_of_files_are_learned():
    before = file_seconds("png")
    learn_file_seconds("png", before + 0.5)
    assert file_seconds("png") == pytest.approx(before + 0.25)
    learn_file_seconds("png", -1)
    assert file_seconds("png") == pytest.approx((before + 0.25) / 2)


def test_real_time_of_opening_is_learned(bundles):
    learn_load(bundles["trims"], "onnxruntime", 1, "uint8", 3.0)
    assert remembered(bundles["trims"], "onnxruntime", 1, "uint8") is None  # nothing was measured yet
    found = calibrate(bundles["trims"], "onnxruntime", 1, "uint8")
    learn_load(bundles["trims"], "onnxruntime", 1, "uint8", 3.0)
    learned = remembered(bundles["trims"], "onnxruntime", 1, "uint8")
    assert learned == Throughput(found.tile, found.seconds, pytest.approx((found.load + 3.0) / 2))
