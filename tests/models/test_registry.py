import json

import pytest
import torch
from safetensors.torch import save_file

import foveal
from foveal.models import create_model, list_models, load_model, registry


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of bundles with weights for sesr_m3 at scale 2."""
    (tmp_path / "bundles" / "small_x2").mkdir(parents=True)
    torch.manual_seed(7)
    model = create_model("sesr_m3", scale=2, expand=4)
    path = tmp_path / "bundles" / "small_x2" / "model.safetensors"
    recipe = {"model": "sesr_m3", "scale": 2, "arguments": {"expand": 4}}
    save_file(model.state_dict(), path, metadata={"recipe": json.dumps(recipe)})
    monkeypatch.setattr(registry.resources, "files", lambda _: tmp_path)
    return model, path


def test_names_are_in_natural_order():
    assert list_models("sesr") == ["sesr_m3", "sesr_m5", "sesr_m7", "sesr_m11", "sesr_xl"]
    assert set(list_models("sesr")) < set(list_models())


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("sesr_m?", ["sesr_m3", "sesr_m5", "sesr_m7"]),
        ("*_fast", ["luma_clean_fast", "luma_sr_fast"]),
        ("quick", ["quicksrnet_large", "quicksrnet_medium", "quicksrnet_small"]),
        ("nothing", []),
    ],
)
def test_filters(pattern, names):
    assert list_models(pattern) == names


@pytest.mark.parametrize("name", ["espcn", "luma_sr_fast", "quicksrnet_small", "safmn", "sesr_xl"])
def test_create_model(name):
    model = create_model(name, scale=2)
    assert not model.training
    assert model(torch.rand(1, 3, 5, 7)).shape == (1, 3, 10, 14)


def test_the_public_face():
    assert foveal.create_model is create_model
    assert foveal.list_models is list_models


def test_an_unknown_name_is_answered_with_the_three_closest():
    with pytest.raises(
        ValueError, match=r"no model is called 'sesr_m6'; the closest are sesr_m\d, sesr_m\d, sesr_m\d;"
    ):
        create_model("sesr_m6")


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(TypeError, match="espcn takes scale, in_channels; got 'colours'"):
        create_model("espcn", colours=1)


def test_weights_of_a_network_without_a_scale_are_not_shipped():
    with pytest.raises(ValueError, match=r"no weights for vmamba_tiny are shipped, only for .*; leave pretrained out"):
        create_model("vmamba_tiny", pretrained=True)


def test_pretrained_loads_shipped_weights(shipped):
    model, _ = shipped
    x = torch.rand(1, 3, 6, 6)
    with torch.inference_mode():
        assert torch.equal(create_model("sesr_m3", pretrained=True)(x), model(x))
    assert list_models(pretrained=True) == ["sesr_m3"]
    assert "sesr_m3" not in list_models(pretrained=False)
    assert "sesr_m5" in list_models(pretrained=False)


def test_pretrained_without_weights_is_refused(shipped):
    with pytest.raises(ValueError, match=r"no weights for espcn at scale 3 are shipped \(scales with weights: none\)"):
        create_model("espcn", pretrained=True)
    with pytest.raises(ValueError, match=r"no weights for sesr_m3 at scale 4 are shipped \(scales with weights: 2\)"):
        create_model("sesr_m3", pretrained=True, scale=4)


def test_load_model_builds_what_the_header_names(shipped):
    model, path = shipped
    x = torch.rand(1, 3, 6, 6)
    loaded = load_model(path)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    assert not loaded.training


def test_load_model_without_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.safetensors: no such file of weights"):
        load_model(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_load_model_of_weights_that_do_not_say_whose(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content) if content is not None else save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not name its network; only files written by `foveal train` do"):
        load_model(path)
