import pytest

from foveal.runtime import engine_choice as module
from foveal.runtime.engine_choice import EngineChoice
from foveal.runtime.throughput import remembered


def test_an_engine_is_chosen_once_for_each_kind_of_pixels(bundles, monkeypatch):
    asked = []

    def pick(wanted, bundle, threads, kind):
        asked.append((wanted, threads, kind))
        return "onnxruntime", "openvino failed: no"

    monkeypatch.setattr(module, "pick_engine", pick)
    choice = EngineChoice(bundles["trims"], "auto", 1, "auto")
    assert choice.name("uint8") == "auto"
    assert [choice.engine(kind) for kind in ("uint8", "uint8", "float")] == ["onnxruntime"] * 3
    assert choice.name("uint8") == "onnxruntime"
    assert asked == [("auto", 1, "uint8"), ("auto", 1, "float")]
    assert choice.notes == ("openvino failed: no",)


def test_the_tile_is_looked_up_and_only_a_throughput_is_measured(bundles):
    choice = EngineChoice(bundles["trims"], "onnxruntime", 1, "auto")
    assert choice.automatic
    assert (choice.tile("uint8"), choice.measured) == (256, ())
    found = choice.throughput("uint8")
    assert found == remembered(bundles["trims"], "onnxruntime", 1, "uint8")
    assert (choice.tile("uint8"), choice.measured) == (found.tile, ("uint8",))
    later = EngineChoice(bundles["trims"], "onnxruntime", 1, "auto")
    assert (later.tile("uint8"), later.measured) == (found.tile, ("uint8",))
    given = EngineChoice(bundles["trims"], "onnxruntime", 1, 19)
    assert not given.automatic
    assert (given.throughput("uint8"), given.tile("uint8")) == (found, 19)


def test_opening_teaches_how_long_it_takes(bundles, monkeypatch):
    learned = []
    monkeypatch.setattr(module, "learn_load", lambda *what: learned.append(what[1:4]))
    opened = EngineChoice(bundles["trims"], "onnxruntime", 1, "auto").open("float")
    assert opened.name == "onnxruntime"
    assert learned == [("onnxruntime", 1, "float")]


def test_wrong_choices_are_refused(bundles):
    with pytest.raises(ValueError, match='tile must be "auto" or a number of pixels of at least 1, got 0'):
        EngineChoice(bundles["trims"], "auto", 1, 0)
    with pytest.raises(
        ValueError, match="engine must be auto or one of native, onnxruntime, openvino, torch, ncnn, got 'x'"
    ):
        EngineChoice(bundles["trims"], "x", 1, "auto")
