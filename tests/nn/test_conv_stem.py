import pytest
import torch

from foveal.nn.conv_stem import ConvStem, halving


@pytest.mark.parametrize(("size", "want"), [((16, 12), (4, 3)), ((17, 9), (5, 3)), ((1, 1), (1, 1))])
def test_a_quarter_of_the_sides_rounded_up(size, want):
    assert ConvStem(3, 8).eval()(torch.rand(1, 3, *size)).shape == (1, 8, *want)


@pytest.mark.parametrize(("size", "want"), [((4, 6), (2, 3)), ((5, 1), (3, 1))])
def test_half_of_the_sides_rounded_up(size, want):
    assert halving(4, 6).eval()(torch.rand(1, 4, *size)).shape == (1, 6, *want)
