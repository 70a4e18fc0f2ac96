import torch
from torch import nn

from foveal.measure.cost import count_macs, count_parameters
from foveal.measure.meta import without_storage
from foveal.models import create_model


def test_sizes_and_costs_are_those_of_the_network_itself():
    with without_storage():
        bare = create_model("luma_sr_fast", scale=2)
    assert all(p.is_meta for p in bare.parameters())
    whole = create_model("luma_sr_fast", scale=2)
    assert count_parameters(bare) == count_parameters(whole)
    assert count_macs(bare, (1, 3, 16, 12)) == count_macs(whole, (1, 3, 16, 12))


def test_only_fills_are_left_out_and_only_inside():
    with without_storage():
        layer = nn.Linear(3, 2).requires_grad_(False)
        assert not layer.weight.requires_grad
        assert (layer.weight.t() + 1).shape == (3, 2)
    assert torch.zeros(2).add_(1).tolist() == [1.0, 1.0]
    assert nn.init.ones_(nn.Linear(1, 1).weight).tolist() == [[1.0]]
