import json

import pytest

from foveal.runtime import plan as module
from foveal.runtime.engines import EngineError, EngineUnsupportedError
from foveal.runtime.plan import (
    Cache,
    Pace,
    cache_folder,
    calibrate,
    file_seconds,
    learn_file_seconds,
    learn_load,
    make_plan,
    memory,
    pick_engine,
    remembered,
)
from foveal.runtime.tiles import make_grid


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FOVEAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "foveal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "foveal"


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
    pace = calibrate(bundles["trims"], "onnxruntime", 1, "uint8")
    assert pace.tile == 32
    assert pace.seconds > 0
    assert (
        calibrate(bundles["trims"], "onnxruntime", 1, "uint8")
        == pace
        == remembered(bundles["trims"], "onnxruntime", 1, "uint8")
    )
    assert len(opened) == 1
    calibrate(bundles["trims"], "onnxruntime", 2, "uint8")
    calibrate(bundles["x3"], "onnxruntime", 1, "float")
    assert len(opened) == 3
    assert all("onnxruntime" in key for key in json.loads((cache_folder() / "calibration.json").read_text()))


def test_auto_takes_the_fastest(bundles, monkeypatch):
    paces = {"onnxruntime": Pace(64, 2.0, 0.1), "openvino": Pace(64, 1.0, 0.1)}

    def pace_of(bundle, name, *rest):
        if name not in paces:
            raise EngineUnsupportedError(f"{name} is for other networks")
        return paces[name]

    monkeypatch.setattr(module, "why_not", lambda name: "")
    monkeypatch.setattr(module, "calibrate", pace_of)
    assert pick_engine("auto", bundles["trims"], 1, "float") == ("openvino", "")
    paces["onnxruntime"] = Pace(64, 0.5, 0.1)
    assert pick_engine("auto", bundles["trims"], 1, "float") == ("onnxruntime", "")
    # A tile with little margin may win over one that computes each pixel faster.
    paces.update(onnxruntime=Pace(4, 1.0, 0.1), openvino=Pace(64, 1.1, 0.1))
    assert pick_engine("auto", bundles["trims"], 1, "float")[0] == "openvino"
    paces["native"] = Pace(64, 0.1, 0.1)
    assert pick_engine("auto", bundles["trims"], 1, "float") == ("native", "")


def test_auto_goes_round_an_engine_that_fails(bundles, monkeypatch):
    def one_fails(bundle, name, *rest):
        if name == "openvino":
            raise EngineError("openvino failed: no")
        if name == "native":
            raise EngineUnsupportedError("for other networks")
        return Pace(64, 1.0, 0.1)

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
    with pytest.raises(EngineError, match="no engine: onnxruntime not installed"):
        pick_engine("auto", bundles["trims"], 1, "float")


def test_plan_grows_with_the_picture(bundles):
    bundle = bundles["trims"]
    pace = Pace(64, 0.5, 0.25)
    small = make_plan(bundle, "onnxruntime", pace, make_grid(64, 64, 64, bundle.card), 2)
    assert small.tiles == 1
    assert small.seconds == pytest.approx(0.25 + 0.5 * 66 * 66 / 1e6)
    large = make_plan(bundle, "onnxruntime", pace, make_grid(640, 640, 64, bundle.card), 2)
    assert large.tiles == 100
    assert large.megapixels == pytest.approx(4 * 640 * 640 / 1e6)
    assert large.memory > small.memory
    animation = make_plan(bundle, "onnxruntime", pace, make_grid(64, 64, 64, bundle.card), 2, frames=10)
    assert animation.seconds == pytest.approx(0.25 + 10 * (small.seconds - 0.25))
    assert "64×64 → 128×128 × 10 frames" in str(animation)
    assert json.loads(json.dumps(large.to_dict()))["tile"] == [64, 64]


def test_hundred_megapixels_stay_under_two_gigabytes(bundles):
    card = bundles["x3"].card
    for pixel_bytes in (3, 8):
        grid = make_grid(10_000, 10_000, 384, card, automatic=True, pixel_bytes=pixel_bytes)
        assert memory(grid, card, "openvino", pixel_bytes, whole=False) < 2e9
        assert memory(grid, card, "openvino", pixel_bytes, whole=True) > 2e9


def test_seconds_of_files_are_learned():
    before = file_seconds("png")
    learn_file_seconds("png", before + 0.5)
    assert file_seconds("png") == pytest.approx(before + 0.25)
    learn_file_seconds("png", -1)
    assert file_seconds("png") == pytest.approx((before + 0.25) / 2)


def test_real_time_of_opening_is_learned(bundles):
    learn_load(bundles["trims"], "onnxruntime", 1, "uint8", 3.0)
    assert remembered(bundles["trims"], "onnxruntime", 1, "uint8") is None  # nothing was measured yet
    pace = calibrate(bundles["trims"], "onnxruntime", 1, "uint8")
    learn_load(bundles["trims"], "onnxruntime", 1, "uint8", 3.0)
    learned = remembered(bundles["trims"], "onnxruntime", 1, "uint8")
    assert learned == Pace(pace.tile, pace.seconds, pytest.approx((pace.load + 3.0) / 2))
