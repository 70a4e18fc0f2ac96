import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.quicksrnet import QuickSRNet, quicksrnet_large, quicksrnet_medium

SIZES = {"small": QuickSRNet, "medium": quicksrnet_medium, "large": quicksrnet_large}


@pytest.mark.parametrize("build", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("scale", [2, 3])
def test_shape_and_range(build, scale):
    out = build(scale)(torch.rand(2, 3, 7, 11) * 3 - 1)
    assert out.shape == (2, 3, 7 * scale, 11 * scale)
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("build", SIZES.values(), ids=SIZES)
def test_starts_as_repetition_of_its_input(build):
    torch.manual_seed(0)
    network = build(2)
    with torch.no_grad():  # take the random part away: only the added ones are near 1
        for conv in (*network.body, network.last):
            conv.weight.copy_(conv.weight > 0.6)
            conv.bias.zero_()
    x = torch.rand(1, 3, 5, 6)
    torch.testing.assert_close(network(x), F.interpolate(x, scale_factor=2))


@pytest.mark.parametrize("build", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("size", [(1, 1), (9, 14)])
def test_folding_leaves_outputs_equal(build, size):
    torch.manual_seed(0)
    network = build(2, folded=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    x = torch.rand(2, 3, *size)
    folded = network.fold()
    torch.testing.assert_close(folded(x), network(x), rtol=0, atol=1e-5)
    assert folded.folded
    assert not network.folded
    assert not torch.equal(folded.body[0].weight, network.body[0].weight)


def test_folding_twice_is_folding_once():
    network = QuickSRNet()
    assert torch.equal(network.fold().last.weight, network.last.weight)


def test_training_folded_or_beside_is_the_same():
    outputs = []
    for folded in (True, False):
        torch.manual_seed(0)
        network = QuickSRNet(2, channels=8, depth=1, folded=folded).double()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
        for _ in range(5):
            optimizer.zero_grad()
            (network(x) - 0.5).square().mean().backward()
            optimizer.step()
        outputs.append(network(x).detach())
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-7)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    network = quicksrnet_large(2)
    network(torch.rand(1, 3, 12, 12)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_margin_is_the_receptive_field():
    torch.manual_seed(0)
    network = QuickSRNet(2)
    x = torch.rand(1, 3, 21, 21, requires_grad=True)
    network(x)[..., 20:22, 20:22].sum().backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert (int(rows.min()), int(rows.max())) == (10 - network.margin, 10 + network.margin)


def test_a_scale_below_one_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        QuickSRNet(0)


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match="channels must be at least in_channels = 3, got 2"):
        QuickSRNet(2, channels=2)
