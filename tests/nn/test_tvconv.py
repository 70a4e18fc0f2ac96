import pytest
import torch
from torch import nn

from foveal.nn.tvconv import CachedTVConv, TVConv, cache_kernels_, stand_in, variant_conv


def test_equal_kernels_are_a_depthwise_convolution():
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 3, 7, 5), torch.randn(3, 25)
    out = variant_conv(x, kernel[:, :, None, None].expand(-1, -1, 4, 3), stride=2)
    torch.testing.assert_close(out, torch.conv2d(x, kernel.view(3, 1, 5, 5), stride=2, padding=2, groups=3))


def test_a_place_has_its_own_kernel():
    x = torch.rand(1, 2, 4, 4)
    kernels = torch.zeros(2, 9, 4, 4)
    kernels[:, 4, 1, 2] = 3  # the centre of the window
    out = variant_conv(x, kernels)
    torch.testing.assert_close(out[..., 1, 2], 3 * x[..., 1, 2])
    assert out.count_nonzero() == 2


def test_constant_maps_give_the_same_kernel_everywhere_and_others_do_not():
    torch.manual_seed(0)
    layer = TVConv(3, (5, 6), affinity=2, hidden=4, depth=3)
    kernels = layer.kernels()
    torch.testing.assert_close(kernels, kernels[..., :1, :1].expand_as(kernels))
    nn.init.normal_(layer.affinity)
    assert layer.kernels().std((2, 3)).min() > 1e-3


def test_the_maps_learn_from_a_constant_start():
    torch.manual_seed(0)
    layer, x = TVConv(2, (4, 4)), torch.randn(3, 2, 4, 4)
    layer(x).square().mean().backward()
    assert layer.affinity.grad.std((2, 3)).min() > 0


@pytest.mark.parametrize("bias", [False, True])
def test_cached_kernels_give_the_same(bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), TVConv(4, (3, 3), stride=2, bias=bias))
    nn.init.normal_(net[1].affinity)
    if bias:
        nn.init.normal_(net[1].bias)
    x = torch.randn(2, 1, 5, 6)
    before = net(x)
    cached = cache_kernels_(net)
    assert isinstance(cached[1], CachedTVConv)
    assert sum(p.numel() for p in cached.parameters()) == 8
    assert torch.equal(cached(x), before)


@pytest.mark.parametrize(("k", "stride", "bias"), [(3, 1, True), (5, 2, False)])
def test_a_stand_in_starts_as_the_layer(k, stride, bias):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 4, k, stride, k // 2, groups=4, bias=bias), torch.randn(2, 4, 7, 8)
    made = stand_in(layer, x.shape)
    torch.testing.assert_close(made(x), layer(x))
    made(x).square().sum().backward()
    assert made.generate[-1].weight.grad.abs().max() > 0  # and moves away from it


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: TVConv(4, (3, 3), kernel_size=4), "kernel_size must be odd, got 4; take 5"),
        (lambda: TVConv(4, (3, 3))(torch.zeros(1, 4, 3, 5)), "for 3×3 places, got a picture of 3×5 at stride 1"),
        (lambda: cache_kernels_(nn.ReLU()), "holds a TVConv, got ReLU without one"),
        (lambda: stand_in(nn.Conv2d(4, 4, 3), (1, 4, 8, 8)), "stands in for a depthwise convolution"),
        (lambda: stand_in(nn.Conv2d(4, 4, 3, groups=4), (1, 4, 8, 8)), "padded by half of it with zeros"),
        (lambda: stand_in(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), (1, 4, 8, 8)), "square, odd kernel"),
    ],
)
def test_what_does_not_fit_raises(build, text):
    with pytest.raises(ValueError, match=text):
        build()
