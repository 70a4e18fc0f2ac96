import pytest
import torch
from torch import nn

from foveal.measure.cost import count_macs, count_parameters
from foveal.models.dense.apriori_conv import APrioriUNet, OneWayConv2d, joined, separate


def kernel(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_full_rank_gives_every_kernel(size):
    weight = kernel(4, 3, size, size)
    u, v = separate(weight, size)
    assert u.shape == (4, size, 3, size)
    assert v.shape == (4, size, size)
    torch.testing.assert_close(joined(u, v), weight)


def test_one_kernel_by_hand():
    u, v = torch.tensor([[[[1.0, 2.0, 0.0]]]]), torch.tensor([[[3.0, 0.0, -1.0]]])
    assert joined(u, v).tolist() == [[[[3.0, 0.0, -1.0], [6.0, 0.0, -2.0], [0.0, 0.0, 0.0]]]]


def test_less_rank_leaves_the_smallest_singular_values():
    weight = kernel(4, 2, 3, 3)
    rest = (joined(*separate(weight, 2)) - weight).flatten(1).norm(dim=1)
    torch.testing.assert_close(rest, torch.linalg.svdvals(weight.reshape(4, 6, 3))[:, 2])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_layer_is_the_convolution_of_its_kernel(rank):
    torch.manual_seed(0)
    layer = OneWayConv2d(3, 5, rank=rank).double()
    x, y = (kernel(2, 3, 7, 9, seed=1).requires_grad_() for _ in range(2))
    whole = nn.functional.conv2d(y, layer.kernel(), layer.along.bias, padding=1)
    torch.testing.assert_close(layer(x), whole)
    target = kernel(2, 5, 7, 9, seed=2)
    ours = torch.autograd.grad((layer(x) * target).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((whole * target).sum(), [y, *layer.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_convolution_becomes_one_way_filters(bias):
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=bias).double()
    made, x = OneWayConv2d.from_dense(layer, rank=3), kernel(1, 3, 5, 6)
    assert made.down.weight.dtype == torch.float64
    torch.testing.assert_close(made(x), layer(x))


def test_the_weights_and_the_work_are_those_of_the_formula():
    layer = OneWayConv2d(6, 4, 5, rank=2)
    weights = 2 * 5 * (6 * 4 + 4)
    assert count_parameters(layer) == weights + 4
    assert count_macs(layer, (1, 6, 8, 8)) == 64 * weights


def test_it_starts_with_the_variance_of_a_convolution():
    torch.manual_seed(0)
    x = torch.randn(4, 32, 16, 16)
    ours, theirs = OneWayConv2d(32, 32, rank=2)(x), nn.Conv2d(32, 32, 3, padding=1)(x)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.15)


@pytest.mark.parametrize("size", [(16, 16), (13, 10), (5, 3)])
@pytest.mark.parametrize("rank", [1, None])
def test_the_field_keeps_its_size(size, rank):
    model = APrioriUNet(2, 1, dim=4, rank=rank)
    assert model(torch.rand(2, 2, *size)).shape == (2, 1, *size)


def test_both_networks_have_the_same_layers():
    ours, dense = APrioriUNet(dim=4), APrioriUNet(dim=4, rank=None)
    assert sum(isinstance(m, OneWayConv2d) for m in ours.modules()) == sum(
        isinstance(m, nn.Conv2d) for m in dense.modules()
    )
    assert 2 * count_parameters(ours) < count_parameters(dense)


def test_the_network_predicts_the_change_of_the_present_field():
    model, x = APrioriUNet(3, 2, dim=4, stages=2), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        model.last.along.weight.zero_()
        model.last.along.bias.copy_(torch.tensor([0.0, 1.0]))
        torch.testing.assert_close(model(x), x[:, :2] + torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))


def test_one_stage_has_no_smaller_map():
    model = APrioriUNet(dim=4, stages=1)
    assert len(model.down) == 1
    assert not model.up
    assert model(torch.rand(1, 3, 7, 5)).shape == (1, 1, 7, 5)


def test_what_cannot_be_built_raises():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; take 5"):
        OneWayConv2d(1, 1, 4)
    with pytest.raises(ValueError, match="rank must be in 1…3, got 4; 3 gives every kernel"):
        OneWayConv2d(1, 1, rank=4)
    with pytest.raises(ValueError, match="stages must be at least 1, got 0"):
        APrioriUNet(stages=0)
    with pytest.raises(ValueError, match="out_channels must be at most in_channels, got 2 and 1"):
        APrioriUNet(1, 2)
    with pytest.raises(ValueError, match="wanted a k×k convolution of stride 1, one group and padding k // 2"):
        OneWayConv2d.from_dense(nn.Conv2d(2, 2, 3, stride=2, padding=1), rank=1)
