import json

import pytest
import typer
from typer.testing import CliRunner

from foveal.cli.swap import swap
from foveal.shrink.swap import swap as module


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(module, "interleaved", lambda functions, **_: ([0.004] * 5, [0.001] * 5))
    app = typer.Typer()
    app.command()(swap)
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "--threads", "1"])


def test_a_line_per_layer(run):
    result = run("resnet10t", "--try", "pconv", "--where", "layer3.*", "--shape", "1,3,32,32")
    assert result.exit_code == 0, result.output
    assert "layer3.0.conv2  256×2×2  4.000 ms  0.25" in result.output
    assert "pconv: faster in 1 of 2 layers" in result.output
    assert "left: pconv keeps height and width" in result.output


def test_json(run):
    arguments = ("--where", "layer3.0.conv2", "--shape", "1,3,32,32", "--arg", "num_classes=10", "--json")
    document = json.loads(run("resnet10t", "--try", "all", *arguments).output)
    line = next(item for item in document["layers"] if item["operator"] == "pconv")
    assert line["ratio"] == 0.25
    assert line["faster"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("resnet10t", "--shape", "1,3"), "--shape must be four whole numbers"),
        (("resnet10t", "--shape", "1,3,x,3"), "--shape must be four whole numbers"),
        (("resnet10t", "--arg", "x"), "--arg must be NAME=VALUE, got 'x'"),
        (("resnet10t", "--try", "pcon"), "did you mean 'pconv'"),
        (("resnet10", "--try", "pconv"), "no model is called 'resnet10'"),
    ],
)
def test_errors(run, arguments, text):
    result = run(*arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
