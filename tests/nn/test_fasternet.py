import pytest
import torch
from torch import nn

from foveal.nn.fasternet import PConv, partial_conv, partial_conv_reference, stand_in


def test_only_the_first_channels_change():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 5, 7)
    out = PConv(9, n_div=4)(x)
    assert torch.equal(out[:, 2:], x[:, 2:])
    assert not torch.allclose(out[:, :2], x[:, :2])


def test_all_channels_are_a_dense_convolution():
    torch.manual_seed(0)
    x, layer = torch.randn(1, 6, 5, 5), PConv(6, n_div=1, kernel_size=5)
    torch.testing.assert_close(layer(x), torch.conv2d(x, layer.weight, padding=2))
    torch.testing.assert_close(partial_conv(x, layer.weight), partial_conv_reference(x, layer.weight))


@pytest.mark.parametrize(
    ("options", "text"),
    [({"n_div": 5}, "n_div must be in 1…4 for 4 channels, got 5"), ({"kernel_size": 2}, "must be odd, got 2; take 3")],
)
def test_sizes(options, text):
    with pytest.raises(ValueError, match=text):
        PConv(4, **options)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), "stands in for a dense convolution with a square kernel"),
        (nn.Linear(4, 4), "got Linear"),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), "needs stride 1"),
        (nn.Conv2d(4, 4, 3), "full padding"),
        (nn.Conv2d(2, 4, 3, padding=1), "n_div must be in 1…2"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 4, 8, 8))
