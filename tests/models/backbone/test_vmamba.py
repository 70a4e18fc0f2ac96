import pytest
import timm
import torch
from torch import nn

from foveal.models.backbone.vmamba import VMamba, VSSBlock, init_weights, vmamba_base, vmamba_small, vmamba_tiny
from foveal.nn.ss2d import SS2D

SMALL = {"dim": 8, "depths": (1, 1, 2, 1), "num_classes": 5}


def test_as_many_parameters_as_the_authors_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in vmamba_tiny().parameters()) == 30_249_064


def test_maps_halve_from_stage_to_stage():
    network = VMamba(**SMALL).eval()
    maps = network.forward_intermediates(torch.rand(1, 3, 70, 53), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 18, 14), (16, 9, 7), (32, 5, 4), (64, 3, 2)]
    assert [info["reduction"] for info in network.feature_info] == [4, 8, 16, 32]


def test_timm_makes_it_and_its_features():
    model = timm.create_model("vmamba_tiny", features_only=True, out_indices=(1, 3), in_chans=1, **SMALL)
    assert [tuple(m.shape) for m in model(torch.rand(1, 1, 32, 48))] == [(1, 16, 4, 6), (1, 64, 1, 2)]
    assert model.feature_info.channels() == [16, 64]


def test_a_block_adds_two_branches_and_drops_them():
    torch.manual_seed(0)
    block, x = VSSBlock(4, nn.Identity(), nn.Identity(), drop_path=0.5), torch.randn(64, 4, 1, 1)
    y = x + block.norm1(x)
    torch.testing.assert_close(block.eval()(x), y + block.norm2(y))
    unchanged = (block.train()(x) == x).flatten(1).all(1).float().mean()
    assert 0.1 < unchanged < 0.4


def test_drop_path_rises_to_the_last_block():
    rates = [m.drop_path.drop_prob for m in VMamba(**SMALL, drop_path=0.4).modules() if isinstance(m, VSSBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_scanned_channels_follow_expand():
    for build, expand in ((vmamba_tiny, 1), (vmamba_small, 2), (vmamba_base, 2)):
        widths = [m.s6.x_proj.shape[-1] for m in build(**SMALL).modules() if isinstance(m, SS2D)]
        assert widths == [expand * w for w in (8, 16, 32, 32, 64)]


def test_weights_start_near_zero_where_channels_are_multiplied():
    torch.manual_seed(0)
    pointwise, depthwise, linear = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3, groups=64), nn.Linear(64, 64)
    before = depthwise.weight.clone()
    nn.Sequential(pointwise, depthwise, linear, nn.Conv2d(2, 2, 1, bias=False)).apply(init_weights)
    for layer in (pointwise, linear):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias.abs().max() == 0
    assert torch.equal(depthwise.weight, before)


def test_without_classes_it_gives_pooled_features():
    network = vmamba_tiny(**{**SMALL, "num_classes": 0}).eval()
    x = torch.rand(2, 3, 40, 33)
    torch.testing.assert_close(network(x), network.forward_features(x).mean((2, 3)))
