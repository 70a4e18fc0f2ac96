import json

import pytest
import typer
from typer.testing import CliRunner

from foveal.cli.measure import measure
from foveal.measure import cost


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(measure)
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "--repeats", "1", "--threads", "1"])


def test_a_registered_network(run):
    result = run("quicksrnet_small", "--shape", "1,3,9,10", "--no-memory")
    assert result.exit_code == 0, result.output
    assert "parameters     22,860" in result.output
    assert "input          1×3×9×10" in result.output
    assert "peak memory    not measured" in result.output


def test_json_and_scale(run, monkeypatch):
    monkeypatch.setattr(cost, "peak_memory", lambda fn, *, threads: 5)
    data = json.loads(run("safmn", "--shape", "1,3,8,8", "--scale", "2", "--json").output)
    assert (data["parameters"], data["peak_memory"], data["shape"]) == (227_820, 5, [1, 3, 8, 8])
    assert data["macs"] == cost.count_macs(__import__("foveal").create_model("safmn", scale=2), (1, 3, 8, 8))


def test_intensity_by_kind_of_layer(run):
    words = ("quicksrnet_small", "--shape", "1,3,9,10", "--no-memory", "--intensity")
    result = run(*words)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["layers", "convolution", "total"]
    assert "weighted" not in result.output
    data = json.loads(run(*words, "--share", "0.3", "--json").output)
    assert [item["kind"] for item in data["intensity"]] == ["convolution", "total"]
    whole = data["intensity"][-1]
    assert whole["macs"] == data["macs"]
    assert whole["weighted"] == whole["macs"] / (0.6 * whole["weights"] + 1.4 * (whole["inputs"] + whole["outputs"]))


def test_intensity_where_it_cannot_be_counted(run, tmp_path):
    result = run("safmn", "--share", "0.3")
    assert result.exit_code == 2
    assert "give --intensity too" in " ".join(result.output.split())
    (tmp_path / "card.json").write_text("{}")
    result = run(str(tmp_path), "--intensity")
    assert result.exit_code == 2
    assert "counts layers of a torch network" in " ".join(result.output.split())


def test_a_bundle_runs_in_onnx_runtime(run, tmp_path, monkeypatch):
    from foveal.runtime.bundle import Card

    seen = {}

    def measured(path, shape, **rest):
        seen.update(path=path, shape=shape, **rest)
        return cost.Cost("toy", shape, rest["parameters"], None, cost.Latency(1.0, 1.0, 1.0, 1, 1), None)

    monkeypatch.setattr(cost, "measure_onnx", measured)
    card = Card(name="toy", scale=2, margin=1, trims=False, files={"float": "model.onnx"}, parameters=12)
    (tmp_path / "card.json").write_text(card.to_json())
    (tmp_path / "model.onnx").write_bytes(b"")
    result = run(str(tmp_path))
    assert result.exit_code == 0, result.output
    assert seen["path"] == tmp_path / "model.onnx"
    assert (seen["parameters"], seen["threads"], seen["name"]) == (12, 1, "toy")
    assert "multiply-adds  not counted" in result.output


@pytest.mark.parametrize("shape", ["1,3,8", "a,b,c,d", "1,3,0,8"])
def test_a_wrong_shape_is_explained(run, shape):
    result = run("safmn", "--shape", shape)
    assert result.exit_code == 2
    assert "four whole numbers" in " ".join(result.output.split())


def test_an_unknown_name_is_explained(run):
    result = run("sesr_m6")
    assert result.exit_code == 2
    assert "no model is called 'sesr_m6'" in " ".join(result.output.split())
