import pytest
import torch

from foveal.evidence.rivals.rlfn import RLFN
from foveal.measure.cost import count_parameters


def test_parameters_are_those_of_the_challenge():
    with torch.device("meta"):
        assert count_parameters(RLFN()) == 317_218


@pytest.mark.parametrize("size", [(5, 7), (15, 16), (23, 33)])
def test_small_and_odd_pictures_are_enlarged(size):
    torch.manual_seed(0)
    model = RLFN(3, dim=8, hidden=8, depth=2, inner=4)
    out = model(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, 3 * size[0], 3 * size[1])
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
