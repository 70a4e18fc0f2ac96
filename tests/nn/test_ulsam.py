import pytest
import torch
from torch import nn

from foveal.nn.ulsam import ULSAM, stand_in, subspace_attention, subspace_maps


def test_maps_sum_to_one_for_each_subspace():
    torch.manual_seed(0)
    maps = ULSAM(12, num_subspaces=3).maps(torch.randn(2, 12, 5, 7))
    assert maps.shape == (2, 3, 5, 7)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3))


def test_a_flat_map_adds_the_mean_share():
    x = torch.randn(2, 6, 4, 5)
    maps = subspace_maps(torch.zeros(2, 2, 4, 5))
    torch.testing.assert_close(subspace_attention(x, maps), x * (1 + 1 / 20))


def test_a_map_weighs_its_own_channels_only():
    maps = torch.zeros(1, 2, 3, 3)
    maps[:, 1] = 1
    out = subspace_attention(torch.ones(1, 4, 3, 3), maps)
    assert out.amax((2, 3)).tolist() == [[1, 1, 2, 2]]


def test_a_subspace_is_seen_by_its_own_map_only():
    torch.manual_seed(0)
    module, x = ULSAM(8, num_subspaces=2).eval(), torch.randn(1, 8, 5, 5)
    nn.init.ones_(module.norm2.bias)  # so that its ReLU lets through what differs
    before = module.maps(x)
    x[:, 4:] = torch.randn(1, 4, 5, 5)
    after = module.maps(x)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_two_weights_per_channel():
    module = ULSAM(16, num_subspaces=8)
    assert sum(layer.weight.numel() for layer in (module.depthwise, module.pointwise)) == 2 * 16


def test_it_takes_the_place_of_a_block():
    made = stand_in(nn.Identity(), (1, 12, 3, 3), num_subspaces=3)
    assert made.pointwise.weight.shape == (3, 4, 1, 1)
    assert made(torch.randn(2, 12, 3, 3)).shape == (2, 12, 3, 3)


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match="num_subspaces must divide the 6 channels, got 4"):
        ULSAM(6)
    with pytest.raises(ValueError, match=r"ulsam takes pictures, \(B, C, H, W\), got an input of shape \(1, 5, 8\)"):
        stand_in(nn.Identity(), (1, 5, 8))
