import json

import pytest

from foveal.cli import doctor as module
from foveal.cli.main import main
from foveal.images.needs import why_not as without
from foveal.runtime.engines import why_not


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["doctor", *arguments])
    return end.value.code, capsys.readouterr().out


def test_report_names_what_works_and_why_the_rest_does_not(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("foveal.runtime.engines.why_not", lambda name: f"{name} is away" if name == "torch" else "")
    code, out = run(capsys, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["engines"]["onnxruntime"]["works"] is True
    assert report["engines"]["torch"] == {"works": False, "why": "torch is away"}
    assert {"png", "jpeg", "webp", "tiff", "avif", "gif", "bmp", "heic", "jxl", "dng"} == report["formats"].keys()
    for name, entry in report["formats"].items():
        reason = without(name)
        assert entry == ({"works": False, "why": reason} if reason else entry | {"works": True})
    assert report["cache"] == {"folder": str(tmp_path / "cache"), "writable": True}
    monkeypatch.setattr(module, "_examine", lambda: report)
    out = run(capsys)[1]
    assert "torch        does not work: torch is away" in out
    assert "onnxruntime  works" in out


def test_the_transcript_in_the_help_says_what_is_printed(monkeypatch):
    def without(*away):
        return lambda name: None if name in away else object()

    shown = [line.strip() for line in module.doctor.__doc__.splitlines()]
    for name in ("openvino", "torch"):
        monkeypatch.setattr("foveal.runtime.engines.find_spec", without(name))
        assert f"{name:<12} does not work: {why_not(name)}" in shown
    monkeypatch.setattr("importlib.util.find_spec", without("torch"))
    assert f"{'triton':<12} {module._state(module._kernels()['triton'])}" in shown


def test_features_are_those_that_matter(monkeypatch):
    monkeypatch.setattr("foveal.runtime.machine.cpu_flags", lambda: {"avx2", "fpu", "sse4_2"})
    assert module._features() == ["sse4_2", "avx2"]
    monkeypatch.setattr("foveal.runtime.machine.cpu_flags", lambda: {"asimd"})
    assert module._features() == ["neon"]


def test_kernels_say_which_is_in_use_and_why_others_are_not(monkeypatch):
    kernels = pytest.importorskip("foveal_kernels")
    found = module._kernels()
    assert [name for name, entry in found.items() if entry.get("version") == "in use"] == kernels.instruction_sets()[:1]
    monkeypatch.setattr(kernels, "_flags", set)
    found = module._kernels()
    assert found["plain"] == {"works": True, "version": "in use"}
    assert found["avx2"]["why"] == "this processor does not understand avx2; it runs plain"
    monkeypatch.setattr(kernels, "built", list)
    assert "installed without a C++ compiler" in module._kernels()["native"]["why"]


def test_machine_that_cannot_upscale_gives_1(capsys, monkeypatch):
    dead = {"works": False, "why": "broken"}
    report = {
        **dict.fromkeys(("foveal", "python", "system", "processor", "threads"), ""),
        "features": [],
        "cache": {"folder": "/x", "writable": False},
        "packages": {"numpy": ""},
        "engines": {"onnxruntime": dead},
        "kernels": {},
        "formats": {"png": {"works": True}},
        "bundles": [],
        "problems": ["no bundle is installed; install foveal again"],
    }
    monkeypatch.setattr(module, "_examine", lambda: report)
    code, out = run(capsys)
    assert code == 1
    assert "/x (cannot be written)" in out
    assert "numpy missing" in out
    assert "problem: no bundle is installed; install foveal again" in out
