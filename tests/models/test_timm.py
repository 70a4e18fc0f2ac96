"""What timm's tools ask of every backbone, asked of one small network a family."""

import copy
import importlib
import itertools
import math

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

import foveal.models.timm
from foveal.index import models
from foveal.nn.isotropic import Isotropic

NAMES = {
    item.module.rpartition(".")[2]: name
    for name, item in reversed(models().items())
    if item.module.startswith("foveal.models.backbone.") and item.module not in foveal.models.timm.APART
}
# timm's own networks, which it tests itself
OWN = {family: name for family, name in NAMES.items() if family not in {"mambaout", "efficientvim"}}
pytestmark = pytest.mark.dear("a small network of every family")
every = pytest.mark.parametrize("name", OWN.values(), ids=OWN)


def sizes(name):
    """The small case of a record, without what timm has its own words for."""
    case = dict(importlib.import_module(models()[name].module).METHOD.cases[name])
    for word in ("in_channels", "num_classes", "drop_path"):
        case.pop(word, None)
    return case


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **sizes(name), **kwargs)


def picture(batch=2, channels=3):
    return torch.rand(batch, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def test_names_are_on_timms_list_and_leave_the_module_as_it_is():
    assert {"vim_tiny", "vmamba_base"} <= set(timm.list_models(module="timm"))
    assert foveal.models.timm.__all__ == ["register"]
    foveal.models.timm.register()
    assert timm.get_pretrained_cfg_value("vim_tiny", "input_size") == (3, 224, 224)


@every
def test_timms_words_and_configuration(name):
    model = build(name, in_chans=1, num_classes=4, drop_rate=0.25, drop_path_rate=0.5)
    assert model.training
    assert (model.in_chans, model.num_classes, model.drop_rate) == (1, 4, 0.25)
    assert max(m.drop_prob for m in model.modules() if isinstance(m, timm.layers.DropPath)) == 0.5
    cfg, state = model.default_cfg, model.state_dict()
    assert cfg is model.pretrained_cfg
    assert cfg["input_size"] == (3, 224, 224)
    assert cfg["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == 1
    named = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    assert all(state[f"{head}.weight"].shape[0] == 4 for head in named)
    assert cfg["pool_size"] == (math.ceil(224 / model.feature_info[-1]["reduction"]),) * 2


@every
def test_heads_come_off_and_go_on(name):
    model = build(name, num_classes=3).eval()
    x = picture()
    features = model.forward_features(x)
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (2, model.head_hidden_size)
    assert features.shape[2 if isinstance(model, Isotropic) else 1] == model.num_features
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), before)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    heads = model.get_classifier()
    assert all(isinstance(head, nn.Linear) for head in (heads if isinstance(heads, tuple) else [heads]))


@every
def test_recomputed_activations_change_nothing(name):
    model = build(name, num_classes=3).eval()
    kept, recomputed = [], []
    for grads in (kept, recomputed):
        model.zero_grad()
        model.forward_features(picture(1)).square().mean().backward()
        grads += [p.grad for p in model.parameters() if p.grad is not None]
        model.set_grad_checkpointing()
    torch.testing.assert_close(recomputed, kept)


@every
def test_layers_are_in_order_from_stem_to_head(name):
    model = build(name, num_classes=3)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == dict(model.named_parameters()).keys()
    of_part = {}
    for parameter, layer in layers.items():
        of_part.setdefault(".".join(parameter.split(".")[:2]), set()).add(layer)
    parts = [of_part[f"{model.parts}.{i}"] for i in range(len(getattr(model, model.parts)))]
    assert layers[f"{model.default_cfg['first_conv']}.weight"] == 0
    assert all(max(first) < min(then) for first, then in itertools.pairwise(parts))
    assert max(parts[-1]) < layers["head.weight"] == max(layers.values())
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["head.weight"] == len(parts) + 1


@every
def test_decays_and_positions_are_not_decayed(name):
    model = build(name, num_classes=3)
    groups = create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=0.5, layer_decay=0.5).param_groups
    decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    named = {parameter for parameter, value in model.named_parameters() if id(value) in decayed}
    assert named
    free = ("A_log", "A_b_log", "D", "D_b", "dt_bias", "pos_embed", "cls_token", "embed", "bias", "bias_all")
    assert not {parameter for parameter in named if parameter.rpartition(".")[2] in free}


@every
def test_features_of_chosen_modules(name):
    model = build(name, features_only=True, out_indices=[0]).eval()
    assert len(getattr(model.model, model.model.parts)) == 1
    (found,) = model(picture(1))
    side = math.ceil(32 / model.feature_info.reduction()[0])
    assert found.shape == (1, model.feature_info.channels()[0], side, side)


@every
def test_a_batch_of_no_pictures(name):
    model = build(name, num_classes=3).eval()
    with torch.no_grad():
        assert model(picture(0)).shape[:2] == (0, 3)
        assert copy.deepcopy(model).double()(picture(0).double()).shape[:2] == (0, 3)  # scans in torch
        assert torch.isfinite(model(picture().to(memory_format=torch.channels_last))).all()


@every
def test_an_unpooled_network(name):
    model = build(name, num_classes=0, global_pool="").eval()
    torch.testing.assert_close(model(picture()), model.forward_features(picture()))
    model.reset_classifier(0, "avg")
    assert model(picture()).shape == (2, model.head_hidden_size)


def test_pictures_of_another_size():
    model = build("vim_tiny", img_size=(8, 30))
    assert model.grid == (2, 8)
    assert timm.models.get_model_input_config(model)["input_size"] == (3, 8, 30)
    with pytest.raises(
        ValueError, match="vmamba_tiny learns no positions and takes pictures of any size, got img_size=8"
    ):
        build("vmamba_tiny", img_size=8)


def test_words_that_there_are_not():
    with pytest.raises(TypeError, match=r"vim_tiny takes dim, .*; got 'depht'"):
        timm.create_model("vim_tiny", depht=2)
    with pytest.raises(ValueError, match="no weights for vim_tiny are shipped; leave pretrained out, or name a file"):
        timm.create_model("vim_tiny", pretrained=True)


def test_weights_load_in_the_names_of_the_authors_and_in_these():
    model = build("vim_tiny", num_classes=3)
    own = model.state_dict()
    theirs = {
        name.replace("blocks.", "layers.").replace("norm.", "norm_f.", name.startswith("norm")): value
        for name, value in own.items()
    }
    for weights in (own, theirs):
        overlay = {"state_dict": weights, "num_classes": 3}
        loaded = timm.create_model("vim_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **sizes("vim_tiny"))
        torch.testing.assert_close(loaded.state_dict(), own)
    # one channel and another head
    other = build("vim_tiny", in_chans=1, num_classes=5, pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(other.patch_embed.proj.weight, own["patch_embed.proj.weight"].sum(1, keepdim=True))
    assert other.head.weight.shape[0] == 5


def test_configurations_say_classes_and_channels():
    cfg = {"num_classes": 6, "input_size": (1, 32, 32)}
    model = timm.create_model("vim_tiny", pretrained_cfg=cfg, **sizes("vim_tiny"))
    assert (model.num_classes, model.in_chans) == (6, 1)
    assert model.default_cfg["first_conv"] == "patch_embed.proj"


@pytest.mark.slow
def test_ten_steps_as_timms_script_takes_them():
    args = {"drop_rate": 0.1, "drop_path_rate": 0.1, "drop_block_rate": None, "global_pool": None, "bn_momentum": None}
    args |= {"bn_eps": None, "scriptable": False, "checkpoint_path": "", "in_chans": 3, "num_classes": 2}
    model = build("vmamba_tiny", **args).to(memory_format=torch.channels_last)
    model.set_grad_checkpointing(enable=True)
    data = timm.data.resolve_data_config({}, model=model)
    assert data["input_size"] == (3, 224, 224)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.8)
    scheduler, epochs = create_scheduler_v2(optimizer, "cosine", num_epochs=10, warmup_epochs=2, warmup_lr=1e-4)
    assert epochs == 10
    scaler = timm.utils.NativeScaler(device="cpu")
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0, 1] * 8)
    # one class is bright
    x = torch.rand(16, 3, 32, 32, generator=generator) + target[:, None, None, None]
    losses = []
    for step in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.to(memory_format=torch.channels_last)).float(), target)
        optimizer.zero_grad()
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        ema.update(model)
        scheduler.step(step + 1)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
