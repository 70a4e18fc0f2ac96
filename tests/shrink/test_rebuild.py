"""Saved without pickle, loaded with the same outputs."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from shrunk import tiny
from torch import nn

from foveal.shrink.fold.step import Fold
from foveal.shrink.lowrank.step import LowRank
from foveal.shrink.prune.structure import Prune
from foveal.shrink.rebuild import Origin, build, load, origin_of, save
from foveal.shrink.step import ShrinkError
from foveal.shrink.tokens.merge import Merge

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shrunk(name, steps, **options):
    torch.manual_seed(0)
    x = X if options.get("img_size") != 64 else F.interpolate(X, 64)
    model = timm.create_model(name, num_classes=7, **options).eval()
    origin = origin_of(model)
    for step in steps:
        model = step.apply(model, x)
    return model, origin, x


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("test_resnet", [Prune(keep=0.5), Fold(), LowRank(keep=0.8)], {}),
        ("test_efficientnet", [Prune(keep=0.5), Fold()], {}),
        ("test_vit", [Prune(keep=0.5, stream=True)], {"img_size": 32}),
        ("test_vit", [Prune(keep=0.5), LowRank(keep=0.9)], {"img_size": 32}),
        ("test_vit", [Prune(keep=0.5), Merge(r=2, multiple=1)], {"img_size": 64}),
    ],
    ids=["resnet", "efficientnet", "vit", "vit_lowrank", "vit_merged"],
)
def test_a_shrunk_timm_network_comes_back(tmp_path, name, steps, options):
    model, origin, x = shrunk(name, steps, **options)
    assert (origin.library, origin.name) == ("timm", name)
    save(model, tmp_path / "torch", origin)
    again = load(tmp_path)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "torch").iterdir()) == ["config.json", "model.safetensors"]
    assert all(list(t.shape) for t in load_file(tmp_path / "torch" / "model.safetensors").values() if t.ndim)


def test_plain_modules_need_no_builder(tmp_path):
    model, x = tiny(), torch.randn(2, 3, 12, 12)
    pruned = Fold().apply(Prune(keep=0.5).apply(model, x), x)
    save(pruned, tmp_path, origin_of(model))
    torch.testing.assert_close(load(tmp_path)(x), pruned(x), rtol=0, atol=0)


def test_a_network_of_foveal_comes_back(tmp_path):
    origin = Origin("foveal", "sesr_m5", {"scale": 2})
    model = build(origin)
    save(model, tmp_path, origin)
    torch.testing.assert_close(load(tmp_path)(X), model(X), rtol=0, atol=0)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


def test_a_network_that_cannot_be_rebuilt_says_so_and_keeps_its_weights(tmp_path):
    assert origin_of(Own()) is None
    with pytest.raises(ShrinkError, match="no builder is known for Own, so the folder holds weights alone"):
        save(Own(), tmp_path, None)
    assert set(load_file(tmp_path / "model.safetensors")) == {"layer.weight", "layer.bias"}
    with pytest.raises(ShrinkError, match="holds weights alone: no builder is known for Own"):
        load(tmp_path)


def test_a_config_names_no_class_of_elsewhere(tmp_path):
    save(tiny(), tmp_path, Origin())
    config = json.loads((tmp_path / "config.json").read_text())
    for kind, said in (("os.path", "is not one of torch.nn."), ("torch.nn.Parameter", "is no module here")):
        config["changes"][""]["module"]["type"] = kind
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ShrinkError, match=said):
            load(tmp_path)


def test_damage_is_an_error_and_not_a_traceback(tmp_path):
    with pytest.raises(ShrinkError, match="no network saved by foveal shrink here"):
        load(tmp_path)
    save(tiny(), tmp_path, Origin())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ShrinkError, match="damaged"):
        load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 9}))
    with pytest.raises(ShrinkError, match="format 9, this foveal reads 1"):
        load(tmp_path)


def test_unknown_builders_are_refused():
    with pytest.raises(ShrinkError, match="library must be one of timm, torchvision, foveal"):
        Origin("keras", "vgg")
    with pytest.raises(ShrinkError, match="timm cannot build 'resnet_of_dreams'"):
        build(Origin("timm", "resnet_of_dreams"))
