import pytest
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from torch import nn

from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.nn.pyramid import Pyramid


class Block(nn.Module):
    """Counts its calls."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, 1, 1))
        self.drop_path = DropPath(0.0)
        self.calls = 0

    def forward(self, x, size=None):
        self.calls += 1
        return x.tanh() * (self.weight if size is None else self.weight[..., 0, 0])


def pyramid(**kwargs):
    torch.manual_seed(0)
    stages = [
        nn.Sequential(Block(4), Block(4), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 6, 2, 2), nn.BatchNorm2d(6), Block(6), Block(6)),
        nn.Sequential(nn.Conv2d(6, 8, 2, 2)),
    ]
    kwargs = {"num_classes": 5, "norm": nn.BatchNorm2d(8), **kwargs}
    return Pyramid(nn.Conv2d(3, 4, 2, 2), stages, (4, 6, 8), (2, 4, 8), **kwargs)


def isotropic(**kwargs):
    torch.manual_seed(0)
    return Isotropic(PatchEmbed(4, 4), [Block(4), Block(4)], 4, 4, grid=(4, 4), num_classes=5, **kwargs)


@pytest.mark.parametrize("build", [pyramid, isotropic])
@pytest.mark.parametrize("by", ["logits", "maps"])
def test_blocks_run_again_in_the_backward_pass_on_demand(build, by):
    model = build()
    blocks = [module for module in model.modules() if isinstance(module, Block)]

    def step():
        x = torch.rand(2, 3, 16, 16)
        y = model(x) if by == "logits" else model.forward_intermediates(x)[0]
        y.sum().backward()
        return {block.calls for block in blocks}

    assert step() == {1}
    model.set_grad_checkpointing()
    assert step() == {3}
    model.set_grad_checkpointing(enable=False)
    assert step() == {4}


def test_a_layer_is_a_block_and_what_stands_beside_it_counts_with_the_first():
    model = pyramid()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    found = {name.removesuffix(".weight"): layer for name, layer in layers.items() if name.endswith("weight")}
    assert found == {
        "stem": 0,
        "stages.0.0": 1,
        "stages.0.1": 2,
        "stages.0.2": 1,
        "stages.1.0": 3,
        "stages.1.1": 3,
        "stages.1.2": 3,
        "stages.1.3": 4,
        "stages.2.0": 5,
        "norm": 6,
        "head": 6,
    }
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [coarse[name] for name in ("stem.weight", "stages.0.1.weight", "stages.2.0.bias", "norm.bias")] == [
        0,
        1,
        3,
        4,
    ]


def test_positions_go_with_the_patches():
    model = isotropic(class_token=True)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert {layers[name] for name in ("pos_embed", "cls_token", "patch_embed.proj.bias")} == {0}
    assert (layers["blocks.0.weight"], layers["blocks.1.weight"], layers["head.weight"]) == (1, 2, 3)


def test_heads_are_averaged():
    model = pyramid()
    model.heads = ("head", "second")
    model.reset_classifier(2)
    x = torch.rand(3, 8)
    torch.testing.assert_close(model.classify(x), (model.head(x) + model.second(x)) / 2)
    assert model.get_classifier() == (model.head, model.second)
    model.reset_classifier(0)
    torch.testing.assert_close(model.classify(x), x)


def test_a_fresh_classifier_is_like_the_other_weights():
    model = pyramid().double()
    model.reset_classifier(3)
    assert model.head.weight.dtype == torch.float64
    assert model(torch.rand(2, 3, 16, 16, dtype=torch.float64)).shape == (2, 3)


def test_the_last_map_without_pooling():
    model = pyramid().eval()
    x = torch.rand(2, 3, 16, 16)
    with pytest.raises(
        ValueError, match="global_pool '' leaves nothing to classify, got 5 classes; give num_classes=0"
    ):
        model.set_global_pool("")
    with pytest.raises(ValueError, match="global_pool must be one of 'avg', '', got 'max'"):
        model.reset_classifier(0, "max")
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))
    with pytest.raises(ValueError, match="got 3 classes"):
        model.reset_classifier(3)


def test_fewer_stages_end_with_their_own_channels():
    model = pyramid().eval()
    assert model.prune_intermediate_layers([0, 1], prune_norm=False, prune_head=False) == [0, 1]
    assert (model.num_features, model.head_hidden_size) == (6, 6)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 6)
    whole = pyramid()
    whole.prune_intermediate_layers([2], prune_norm=False, prune_head=False)
    assert isinstance(whole.norm, nn.BatchNorm2d)
    assert whole.num_classes == 5


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_scripting_is_refused():
    with pytest.raises(TypeError, match=r"Pyramid cannot be scripted: .*; take torch\.export, torch\.jit\.trace or"):
        torch.jit.script(pyramid())
