import pytest
import torch
from torch import nn

from foveal.nn.patch_merging import PatchMerging


@pytest.mark.parametrize("side", [(4, 6), (5, 7), (1, 2)])
def test_four_neighbours_become_channels_and_zeros_complete_an_odd_side(side):
    layer, x = PatchMerging(2, 8), torch.rand(1, 2, *side) + 1
    layer.norm = nn.Identity()
    with torch.no_grad():
        layer.reduction.weight.copy_(torch.eye(8)[..., None, None])
    y = layer(x)
    assert y.shape == (1, 8, (side[0] + 1) // 2, (side[1] + 1) // 2)
    assert torch.equal(nn.functional.pixel_shuffle(y, 2)[..., : side[0], : side[1]], x)
    assert int((y > 0).sum()) == x.numel()
    assert int((y == 0).sum()) == y.numel() - x.numel()


def test_channels_are_normalised_before_they_are_projected():
    torch.manual_seed(0)
    layer, x = PatchMerging(4, 6), torch.rand(2, 4, 7, 2)
    assert layer(x).shape == (2, 6, 4, 1)
    torch.testing.assert_close(layer(3 * x[..., :6, :]), layer(x[..., :6, :]), rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 16 + 16 * 6


def test_a_batch_of_no_pictures_is_halved_too():
    assert PatchMerging(2, 6)(torch.rand(0, 2, 5, 4)).shape == (0, 6, 3, 2)
