import json

import pytest
import typer
from typer.testing import CliRunner

from foveal.cli.models import models
from foveal.runtime import bundle as bundles
from foveal.runtime.bundle import Card


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command, over one shipped bundle."""
    card = Card(
        name="fast_x4",
        scale=4,
        margin=8,
        trims=True,
        files={"float": "model.onnx"},
        quality="fast",
        licence="Apache-2.0",
        measured={"Set5": {"psnr": 30.954, "ssim": 0.87}, "seconds_per_megapixel": 0.0191},
        parameters=17328,
    )
    (tmp_path / "fast_x4").mkdir()
    (tmp_path / "fast_x4" / "card.json").write_text(card.to_json())
    monkeypatch.setattr(bundles, "SHIPPED", tmp_path)
    app = typer.Typer()
    app.command()(models)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_bundles_and_networks_are_listed(run):
    result = run("*fa*")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("fast_x4"))
    assert line.split() == ["fast_x4", "4", "fast", "17,328", "0.019", "30.95", "Apache-2.0"]
    assert any(line.split() == ["luma_sr_fast", "64,695", "yes"] for line in result.output.splitlines())


def test_a_filter_takes_from_both(run):
    output = run("fast").output
    assert "fast_x4" in output
    assert "luma_sr_fast" in output
    assert "safmn" not in output
    assert "fast_x4" not in run("sesr_*").output


def test_json(run):
    data = json.loads(run("*m5", "--json").output)
    assert data["bundles"] == []
    assert data["models"] == [{"name": "sesr_m5", "parameters": 333_648, "pretrained": False}]
    assert json.loads(run("fast_x4", "--json").output)["bundles"][0]["seconds_per_megapixel"] == 0.0191


def test_nothing_found_is_said(run):
    result = run("zebra")
    assert result.exit_code == 2
    assert "foveal models: nothing is called 'zebra'; foveal models lists all" in result.output


def test_without_torch_the_bundles_are_listed(run, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = run()
    assert "fast_x4" in result.output
    assert "Networks to train need torch: pip install '.[torch]'" in result.output


def test_a_broken_bundle_is_named(run, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "card.json").write_text("{")
    result = run()
    assert result.exit_code == 2
    assert "card.json" in result.output
