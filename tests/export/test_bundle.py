import copy
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.export.bundle import export_bundle
from foveal.export.deployable import ExportError
from foveal.export.levels import write_levels
from foveal.models import create_model
from foveal.models.registry import load_model
from foveal.models.restore.luma_clean import LumaClean
from foveal.models.restore.luma_sr import LumaSR
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import BundleError, Card

pytestmark = pytest.mark.dear("torch's export takes a second")

LEVELS = ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LumaSR(2, channels=4, depth=1, expand=4)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    arguments = {"channels": 4, "depth": 1, "expand": 4}
    return export_bundle(
        model, folder / "tiny", name="tiny", model_name="luma_sr_fast", arguments=arguments, scale=2, quality="fast"
    )


def test_bundle_is_whole_and_runtime_reads_it(made):
    assert made.fast_path
    assert all(p.relative < 1e-4 for p in made.parity)
    card = json.loads((made.folder / "card.json").read_text())
    assert (card["scale"], card["margin"], card["trims"], card["multiple"]) == (2, 3, True, 1)
    # 3·4·9 + 4, 4·4·9 + 4, 4·4·9 + 4, the 5×5 base 3·12·25, the spread 4·12
    assert card["parameters"] == 112 + 148 + 148 + 900 + 48
    for file, digest in card["sha256"].items():
        assert hashlib.sha256((made.folder / file).read_bytes()).hexdigest() == digest
    assert Bundle.load(made.folder).card.name == "tiny"
    assert [p.name for p in made.folder.parent.iterdir()] == ["tiny"]


def test_weights_build_the_network_again(made, model):
    again = load_model(made.folder / "model.safetensors")
    x = torch.rand(1, 3, 9, 9)
    kept = copy.deepcopy(model)
    with torch.no_grad():  # a bundle keeps its weights in half precision
        for parameter in kept.parameters():
            parameter.copy_(parameter.half())
    assert torch.equal(again(x), kept(x))
    torch.testing.assert_close(again(x), model(x), atol=1e-3, rtol=0)


def test_card_says_whether_the_network_is_equivariant(tmp_path, made):
    assert not made.card["equivariant"]
    tied = create_model("luma_sr_fast", scale=2, channels=8, depth=1, expand=0, equivariant=True)
    bundle = export_bundle(tied, tmp_path / "tied", name="tied", model_name="luma_sr_fast", scale=2)
    assert bundle.card["equivariant"]


def test_card_is_checked_when_it_is_written(tmp_path, made, model, monkeypatch):
    assert Card.read(made.folder / "card.json").to_dict() == made.card
    assert made.card["purpose"] == "super-resolution"
    whole = (made.folder / "model.onnx").read_bytes()
    monkeypatch.setattr("foveal.export.bundle.to_onnx", lambda model, path, example: path.write_bytes(whole))
    keywords = {"name": "b", "model_name": "luma_sr_fast", "scale": 2}
    with pytest.raises(BundleError, match="b: quality must be one of fast, balanced, best, got 'great'"):
        export_bundle(model, tmp_path / "b", quality="great", **keywords)
    with pytest.raises(BundleError, match=r"b: purpose must be one of super-resolution, restoration, .*got 'art'"):
        export_bundle(model, tmp_path / "b", purpose="art", **keywords)
    assert list(tmp_path.iterdir()) == []


def test_standing_bundle_is_kept_unless_told(tmp_path, made, model, monkeypatch):
    folder = tmp_path / "tiny"
    shutil.copytree(made.folder, folder)
    with pytest.raises(ExportError, match=r"exists; give another place, or overwrite=True \(--overwrite\)"):
        export_bundle(model, folder, name="other", model_name="luma_sr_fast", scale=2)
    assert json.loads((folder / "card.json").read_text())["name"] == "tiny"
    whole = (made.folder / "model.onnx").read_bytes()
    monkeypatch.setattr("foveal.export.bundle.to_onnx", lambda model, path, example: path.write_bytes(whole))
    again = export_bundle(model, folder, name="tiny", model_name="luma_sr_fast", scale=2, data="x", overwrite=True)
    assert json.loads((again.folder / "card.json").read_text())["data"] == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_failed_export_leaves_nothing(tmp_path, made, model, monkeypatch):
    def fail(*arguments, **keywords):
        raise ExportError("differs")

    monkeypatch.setattr("foveal.export.bundle.to_onnx", lambda *a: None)
    monkeypatch.setattr("foveal.export.bundle.parity", fail)
    with pytest.raises(ExportError, match="differs"):
        export_bundle(model, tmp_path / "b", name="b", model_name="luma_sr_fast", scale=2)
    assert list(tmp_path.iterdir()) == []


class Mixing(torch.nn.Module):
    """A denoiser that looks at the whole picture; sides are even, and 4 at least."""

    scale, multiple, minimum = 1, 2, 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        if min(x.shape[-2:]) < 3:
            raise ValueError("too small")
        return x - 0.1 * self.conv(x) * (1 + x.mean((2, 3), keepdim=True))


def test_a_global_denoiser_becomes_a_bundle_of_overlapping_tiles(tmp_path):
    made = export_bundle(Mixing(), tmp_path / "b", name="b", model_name="b", scale=1, purpose="restoration")
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert (card["scale"], card["purpose"], card["tiling"]) == (1, "restoration", "overlap")
    assert (card["multiple"], card["minimum"], card["trims"]) == (2, 3, False)
    assert card["margin"] >= 1
    assert 0.9 < made.within <= 1
    assert [p.shape for p in made.parity] == [(1, 3, 4, 4), (1, 3, 8, 16), (2, 3, 64, 34)], "none below the minimum"
    assert not made.fast_path
    assert Bundle.load(made.folder).card.scale == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hi_mamba", {"scale": 2, "dim": 4, "groups": 1, "depth": 1, "state": 1}),
        ("serpent", {"dim": 4, "depths": (1, 1), "state": 1}),
    ],
)
def test_networks_that_scan_become_bundles(tmp_path, name, arguments):
    torch.manual_seed(0)
    model = create_model(name, **arguments)
    result = export_bundle(model, tmp_path / name, name=name, model_name=name, scale=model.scale)
    assert all(p.relative < 1e-4 for p in result.parity)
    assert result.card["tiling"] == "overlap"
    assert 1 <= result.card["margin"] <= 64
    # Tiles with the margin around them are near the whole picture.
    x, m, s = torch.rand(1, 3, 64 + 2 * 32, 64 + 2 * 32), 32, model.scale
    with torch.inference_mode():
        whole, tile = model(x), model(x[..., : 64 + m, : 64 + m])
    assert (tile - whole[..., : s * (64 + m), : s * (64 + m)])[..., : s * 64, : s * 64].abs().max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["espcn", "quicksrnet_small", "sesr_m5", "safmn"])
def test_every_registered_network_becomes_a_bundle(tmp_path, name):
    model = create_model(name, scale=2)
    result = export_bundle(model, tmp_path / name, name=name, model_name=name, scale=2)
    assert all(p.relative < 1e-4 for p in result.parity)


def test_a_network_with_levels_becomes_a_bundle_with_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.export.bundle.GRID", LEVELS)
    arguments = {"channels": 8, "depth": 1, "expand": 0}
    told = LumaClean(2, **arguments).eval()
    with pytest.raises(ExportError, match="all levels are alike, so nothing can be told; train it first"):
        write_levels(told, tmp_path, LEVELS)
    torch.nn.init.normal_(told.tell[2].weight)
    described = {"name": "told", "model_name": "luma_clean_balanced", "arguments": arguments, "scale": 2}
    made = export_bundle(told, tmp_path / "told", quality="balanced", **described)
    bundle = Bundle.load(made.folder)
    assert (bundle.card.levels, bundle.card.overshoot, bundle.card.margin) == ("levels.npz", 0.5, told.margin)
    assert set(bundle.card.sha256) == {"model.onnx", "model_u8.onnx", "levels.npz"}
    assert len(bundle.levels().points) == len(LEVELS)
    shown = tmp_path / "shown"
    shown.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3), np.uint8)
    Image.fromarray(noise).save(shown / "noise.png")
    coded = export_bundle(told, tmp_path / "int8", calibration=shown, **described)
    assert coded.int8_psnr > 45
    bundle = Bundle.load(coded.folder)
    assert set(bundle.card.files) == set(bundle.levels().places) == {"float", "uint8", "int8"}
    monkeypatch.setattr("foveal.export.bundle.LEAST_PSNR", 200)
    with pytest.raises(ExportError, match=r"luma_clean_balanced: int8 is only \d.* below 200; export without --int8"):
        export_bundle(told, tmp_path / "bad", calibration=shown, **described)
