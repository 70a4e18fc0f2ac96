import pytest
import torch
import torch.nn.functional as F

from foveal.nn.channel_shift import DIRECTIONS, ShiftConv2d, shift8, shifted_kernel


def test_each_direction_once():
    assert sorted(DIRECTIONS) == [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def test_a_dot_moves_away_from_where_each_group_looks():
    x = torch.zeros(1, 8, 3, 3)
    x[..., 1, 1] = 1
    places = [tuple((shift8(x)[0, i] == 1).nonzero()[0].tolist()) for i in range(8)]
    assert places == [(1 - dy, 1 - dx) for dy, dx in DIRECTIONS]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (7, 9)])
def test_equals_a_sparse_convolution(size):
    torch.manual_seed(0)
    conv = ShiftConv2d(16, 5).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    weights = torch.randn(2, 5, *size, dtype=torch.float64)
    ours, theirs = conv(x), F.conv2d(x, shifted_kernel(conv.weight), conv.bias, padding=1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours, conv.expanded()(x), rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((out * weights).sum(), [x, *conv.parameters()]) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_one_weight_of_nine():
    kernel = shifted_kernel(torch.ones(3, 16, 1, 1))
    assert torch.equal((kernel != 0).sum((2, 3)), torch.ones(3, 16))


@pytest.mark.parametrize("channels", [4, 12])
def test_channels_that_eight_groups_cannot_share_are_refused(channels):
    with pytest.raises(
        ValueError, match=f"channels must be a multiple of 8, one group for each direction, got {channels}"
    ):
        ShiftConv2d(channels, 8)
