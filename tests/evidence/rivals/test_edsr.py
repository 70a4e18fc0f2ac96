import pytest
import torch

from foveal.evidence.rivals.edsr import EDSR, Block


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_enlarges_by_its_scale(scale):
    assert EDSR(scale, dim=4, depth=1)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)


def test_zero_weights_give_grey():
    model = EDSR(2, dim=4, depth=2)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    assert torch.equal(model(torch.rand(1, 3, 4, 4)), torch.full((1, 3, 8, 8), 0.5))


def test_the_factor_weighs_the_branch():
    torch.manual_seed(0)
    block, x = Block(3, 0.1), torch.rand(1, 3, 4, 4)
    branch = block.conv2(block.conv1(x).relu())
    torch.testing.assert_close(block(x), x + 0.1 * branch)
