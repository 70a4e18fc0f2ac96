import pytest
import torch
from torch import nn

from foveal.nn.coordinate_kernels import SIREN, MAGNet, grid, sampled, unit_energy_


def test_coordinates_are_around_zero():
    assert torch.equal(grid([3, 1]), torch.tensor([[[-1.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]]))
    assert grid([4], [0.5]).flatten().tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid([2, 3, 4], dtype=torch.float64).shape == (2, 3, 4, 3)
    torch.testing.assert_close(grid([5]).flatten(), torch.linspace(-1, 1, 5))


def magnet_by_places(net, places):
    """The formula, a place and a channel at a time."""
    rows = []
    for place in places:
        out = None
        for i, gabor in enumerate(net.filters):
            values = []
            for channel in range(len(gabor.mean)):
                window = wave = 0.0
                for axis in range(len(place)):
                    window = window + (gabor.sharpness[channel, axis] * (place[axis] - gabor.mean[channel, axis])) ** 2
                    wave = wave + gabor.wave.weight[channel, axis] * place[axis]
                values.append(torch.exp(-window / 2) * torch.sin(wave + gabor.wave.bias[channel]))
            g = torch.stack(values)
            if out is None:
                out = g
            else:
                linear = net.linears[i - 1]
                out = g * (linear.weight @ out + linear.bias)
        rows.append(net.output.weight @ out + net.output.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("data_dim", [1, 2, 3])
def test_magnet_is_the_formula(data_dim):
    torch.manual_seed(0)
    net = MAGNet(data_dim, 3, hidden=4, depth=2).double()
    for value in net.parameters():
        nn.init.normal_(value)
    places = torch.randn(5, data_dim, dtype=torch.float64, requires_grad=True)
    inputs = [places, *net.parameters()]
    ours, theirs = net(places), magnet_by_places(net, places)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(theirs.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_siren_is_the_formula():
    torch.manual_seed(0)
    net = SIREN(2, 3, hidden=4, depth=2, omega_0=7.0).double()
    places = torch.randn(5, 2, dtype=torch.float64)
    first, second = net.linears
    hidden = torch.sin(7 * (places @ first.weight.T + first.bias))
    hidden = torch.sin(7 * (hidden @ second.weight.T + second.bias))
    torch.testing.assert_close(net(places), hidden @ net.output.weight.T + net.output.bias)


def test_windows_start_where_they_are_meant_to():
    torch.manual_seed(0)
    assert MAGNet(1, 2, hidden=50, spread=0.2).filters[0].mean.abs().max() <= 0.2
    causal = MAGNet(1, 2, hidden=50, spread=0.2, causal=True).filters[0].mean
    assert 0.8 <= causal.min() <= causal.max() <= 1
    # gamma distributions of mean 6, 3 and 2
    means = [gabor.sharpness.mean().item() for gabor in MAGNet(3, 2, hidden=400, depth=2).filters]
    assert means == pytest.approx([6, 3, 2], rel=0.1)


def test_a_kernel_is_finer_at_half_the_step():
    torch.manual_seed(0)
    net = MAGNet(2, 3)
    coarse, fine = sampled(net, (5, 7), (0.4, 0.2)), sampled(net, (9, 13), (0.2, 0.1))
    assert coarse.shape == (3, 5, 7)
    torch.testing.assert_close(fine[:, ::2, ::2], coarse)
    torch.testing.assert_close(coarse[:, 2, 3], net(torch.zeros(2)))


@pytest.mark.parametrize("network", [MAGNet, SIREN])
def test_kernels_keep_variance(network):
    torch.manual_seed(0)
    net = network(1, 8)
    before, mask = sampled(net, [64]), torch.rand(64)
    unit_energy_(net, before * mask)
    after = sampled(net, [64]) * mask
    torch.testing.assert_close(after.square().sum(1).mean(), torch.tensor(1.0))
    torch.testing.assert_close(after / after.norm(), before * mask / (before * mask).norm())


def test_a_kernel_of_zeros_stays():
    net = MAGNet(1, 2)
    unit_energy_(net, sampled(net, [1]))
    assert net.output.weight.isfinite().all()
    assert (sampled(net, [1]) == 0).all()


def test_axes_and_depth():
    with pytest.raises(ValueError, match=r"sizes must have 2 axes as the network's coordinates, got \(3,\)"):
        sampled(MAGNet(2, 1), (3,))
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        SIREN(1, 1, depth=0)
