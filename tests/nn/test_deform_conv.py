import pytest
import torch
import torch.nn.functional as F

from foveal.nn.deform_conv import DeformConv2d
from foveal.ops.deform_conv import most_rows


def test_it_starts_as_a_convolution():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 7)
    for options in ({}, {"square": True, "reach": 2}, {"whole": True, "stride": 2}):
        layer = DeformConv2d(3, 5, **options)
        want = F.conv2d(x, layer.conv.weight, layer.conv.bias, options.get("stride", 1), 1)
        torch.testing.assert_close(layer(x), want)
    layer = DeformConv2d(3, 5, depthwise=True, bias=False)
    assert layer.conv.bias is None
    torch.testing.assert_close(layer(x), F.conv2d(layer.mix(x), layer.conv.weight, padding=1, groups=5))


def test_every_parameter_learns():
    torch.manual_seed(0)
    for options in ({}, {"depthwise": True, "square": True, "whole": True, "reach": most_rows(6, 3)}):
        layer = DeformConv2d(3, 5, **options)
        layer(torch.randn(2, 3, 6, 7)).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_offsets_move_taps():
    layer = DeformConv2d(1, 1, bias=False)
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0, 1, 1] = 1.0
        layer.offset.bias[2 * 4 + 1] = 1.0  # the tap in the middle looks one pixel to the right
    x = torch.randn(1, 1, 4, 5)
    torch.testing.assert_close(layer(x), F.pad(x, (0, 1))[..., 1:])


def test_an_even_kernel_raises():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 2; take 3"):
        DeformConv2d(1, 1, 2)
