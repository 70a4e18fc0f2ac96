import pytest
import torch
import torch.nn.functional as F

from foveal.models.backbone.groupmamba import (
    VSSS,
    GroupMamba,
    GroupMambaBlock,
    GroupMambaLayer,
    _scan_macs,
    _scanning,
    _ungrouped,
    groupmamba_tiny,
)
from foveal.nn.ss2d import SS2D

SMALL = {"dims": (8, 8, 12, 16), "depths": (1, 1, 1, 1), "num_classes": 5}


def test_as_many_parameters_as_the_authors_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in groupmamba_tiny().parameters()) == 23_361_917


def test_the_grouped_scan_is_four_plain_scans():
    torch.testing.assert_close(_scanning(grouped=True), _scanning(grouped=False), rtol=0, atol=1e-12)


def test_a_quarter_of_the_scans():
    assert 4 * _scan_macs(VSSS(32)) == _scan_macs(_ungrouped(32))
    assert isinstance(_ungrouped(32), SS2D)


def test_groups_do_not_mix():
    torch.manual_seed(0)
    mixer, x = VSSS(16), torch.randn(1, 16, 4, 3)
    changed = x.clone()
    changed[:, 4:8] += torch.randn(1, 4, 4, 3)
    difference = (mixer(changed) - mixer(x)).abs().amax((0, 2, 3)).view(4, 4).amax(1) > 0
    assert difference.tolist() == [False, True, False, False]


@pytest.mark.parametrize("side", [(1, 1), (5, 3)])
def test_a_group_is_ss2d_with_one_route(side):
    """The first group goes by rows, as the first of the raster's two routes; the second of them is made silent."""
    torch.manual_seed(0)
    mixer, alone = VSSS(24).double(), SS2D(6, state=1, expand=1.0, order="raster", num_routes=2).double()
    torch.nn.init.normal_(mixer.norm_weight)
    torch.nn.init.normal_(mixer.norm_bias)
    with torch.no_grad():
        alone.in_proj.weight.copy_(torch.cat([mixer.in_proj.weight[:6], mixer.gate_proj.weight[:6]]))
        alone.conv.weight.copy_(mixer.conv.weight[:6])
        alone.conv.bias.copy_(mixer.conv.bias[:6])
        for name in ("x_proj", "dt_proj", "dt_bias", "A_log", "D"):
            ours = getattr(alone.s6, name)
            half = ours.shape[0] // 2
            ours[:half] = getattr(mixer.s6, name)[:half]
        alone.s6.x_proj[1] = 0
        alone.s6.D[6:] = 0
        alone.norm.weight.copy_(mixer.norm_weight[0].flatten())
        alone.norm.bias.copy_(mixer.norm_bias[0].flatten())
        alone.out_proj.weight.copy_(mixer.out_proj.weight[:6])
    x = torch.randn(2, 24, *side, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[:, :6], alone(x[:, :6]), rtol=0, atol=1e-12)


def test_a_layer_weighs_channels_by_their_mean():
    torch.manual_seed(0)
    layer, x = GroupMambaLayer(32), torch.randn(2, 32, 3, 4)
    torch.nn.init.normal_(layer.scale)
    n = layer.norm(x)
    affinity = layer.expand(F.relu(layer.reduce(n.mean((2, 3), keepdim=True)))).sigmoid()
    torch.testing.assert_close(layer(x), layer.proj(layer.norm(layer.vsss(n) * layer.scale * n * affinity)))


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of 4, one group a direction, got 10; take 12"):
        GroupMambaLayer(10)


def test_two_classifiers_are_averaged_and_trained_apart():
    torch.manual_seed(0)
    network, x = groupmamba_tiny(**SMALL).eval(), torch.rand(2, 3, 32, 40)
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    averaged = (network.head(features) + network.head_dist(features)) / 2
    torch.testing.assert_close(network(x), averaged)
    network.distilled_training = True
    torch.testing.assert_close(network(x), averaged)
    label, teacher = network.train()(x)
    assert label.shape == teacher.shape == (2, 5)
    assert not torch.equal(label, teacher)


def test_both_classifiers_are_replaced():
    network = GroupMamba(**SMALL, stem_dim=4).eval()
    network.reset_classifier(7)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    network.reset_classifier(0)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 16)


@pytest.mark.parametrize("side", [(33, 40), (71, 57)])
def test_any_size_and_its_maps(side):
    network = GroupMamba(**SMALL, stem_dim=4, drop_path=0.3).eval()
    last, maps = network.forward_intermediates(torch.rand(1, 3, *side))
    assert [m.shape[1] for m in maps] == [8, 8, 12, 16]
    assert last.shape[2:] == maps[-1].shape[2:] == ((side[0] + 31) // 32, (side[1] + 31) // 32)
    rates = [m.drop_path.drop_prob for m in network.modules() if isinstance(m, GroupMambaBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
