import pytest
import torch

from foveal.evidence.rivals.swinir import Block, SwinIR
from foveal.measure.cost import count_parameters
from foveal.measure.meta import without_storage


@pytest.mark.parametrize(("scale", "parameters"), [(2, 910_152), (4, 929_628)])
def test_parameters_of_the_light_network(scale, parameters):
    with without_storage():
        assert count_parameters(SwinIR(scale)) == parameters


@pytest.mark.parametrize("size", [(1, 3), (8, 8), (5, 11)])
def test_it_enlarges_by_its_scale(size):
    network = SwinIR(3, dim=4, depths=(2,), num_heads=2, window=4, in_channels=1)
    assert network(torch.rand(1, 1, *size)).shape == (1, 1, 3 * size[0], 3 * size[1])


def test_zero_weights_give_the_mean():
    network = SwinIR(2, dim=4, depths=(1,), num_heads=2, window=4)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(network(torch.rand(1, 3, 5, 4)), network.mean.expand(1, 3, 10, 8))


def reach(block):
    """Rows that the first row depends on."""
    x = torch.rand(1, 8, 4, 4, requires_grad=True)
    block(x)[0, 0].sum().backward()
    return x.grad[0].abs().sum((1, 2)).nonzero().flatten().tolist()


def test_shifted_windows_end_elsewhere():
    torch.manual_seed(0)
    assert reach(Block(4, 2, 4)) == [0, 1, 2, 3]
    assert reach(Block(4, 2, 4, shifted=True)) == [0, 1]
