import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.models.restore.sesr import SESR, sesr_m3, sesr_m7, sesr_m11


def weights(network):
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("build", "scale", "count"), [(sesr_m3, 2, 8_912), (SESR, 4, 18_320), (sesr_m7, 2, 18_128)])
def test_collapsed_parameters_are_those_of_the_paper(build, scale, count):
    network = build(scale, in_channels=1, expand=4).collapse()
    assert weights(network) == count
    slopes = sum(p.numel() for m in network.modules() if isinstance(m, nn.PReLU) for p in m.parameters())
    assert sum(p.numel() for p in network.parameters()) == count + slopes


@pytest.mark.parametrize("build", [sesr_m3, SESR, sesr_m11])
@pytest.mark.parametrize(("scale", "channels"), [(2, 1), (3, 3)])
@pytest.mark.parametrize("size", [(1, 1), (9, 14)])
def test_three_forms_give_the_same(build, scale, channels, size):
    torch.manual_seed(0)
    network = build(scale, in_channels=channels, expand=32)
    x = torch.rand(2, channels, *size)
    long_way = network.expanded(x)
    assert long_way.shape == (2, channels, size[0] * scale, size[1] * scale)
    torch.testing.assert_close(network(x), long_way, rtol=0, atol=1e-5)
    torch.testing.assert_close(network.collapse()(x), long_way, rtol=0, atol=1e-4)


def test_collapse_leaves_the_network_alone():
    network = sesr_m3(expand=8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain = network.collapse()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    plain.activations[0].weight.data.zero_()
    assert network.activations[0].weight.abs().min() > 0


def test_without_weights_it_repeats_its_input():
    network = sesr_m3(2, expand=8)
    nn.init.zeros_(network.last.narrow)
    x = torch.rand(1, 3, 5, 4)
    torch.testing.assert_close(network(x), F.interpolate(x, scale_factor=2))


def test_every_parameter_gets_the_gradient_of_the_expanded_network():
    torch.manual_seed(0)
    network = SESR(2, features=4, depth=2, expand=6, in_channels=1).double()
    x = torch.rand(1, 1, 8, 7, dtype=torch.float64)
    gradients = []
    for forward in (network, network.expanded):
        network.zero_grad()
        forward(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for short, long in zip(*gradients, strict=True):
        torch.testing.assert_close(short, long, rtol=0, atol=1e-12)
        assert short.abs().max() > 0


def test_margin_is_the_receptive_field():
    torch.manual_seed(0)
    network = sesr_m3(2, in_channels=1, expand=8)
    x = torch.rand(1, 1, 31, 31, requires_grad=True)
    network(x)[..., 30:32, 30:32].sum().backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    assert (int(rows.min()), int(rows.max())) == (15 - network.margin, 15 + network.margin)


def test_a_scale_below_one_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        SESR(0)
