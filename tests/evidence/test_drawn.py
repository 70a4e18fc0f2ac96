import pytest
import torch
from torch import nn

from foveal.evidence.drawn import drawn_


@pytest.fixture
def network():
    torch.manual_seed(0)
    block = (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*(layer for _ in range(8) for layer in block)).eval()


def test_what_a_deep_network_gives_depends_on_its_input(network):
    assert drawn_(network) is network
    a, b = network(torch.randn(2, 4, 9, 9))
    assert (a - b).abs().max() > 0.1 * a.abs().max()
    assert all(value.std() > 0 for name, value in network.state_dict().items() if "num_batches" not in name)


def test_seeds_repeat(network):
    torch.manual_seed(3)
    first = {name: value.clone() for name, value in drawn_(network).state_dict().items()}
    torch.manual_seed(3)
    assert all(torch.equal(value, first[name]) for name, value in drawn_(network).state_dict().items())
