import pytest
import torch
import torch.nn.functional as F

from foveal.nn.megablocks import MegaBlocks, megablocks_mlp, padded_sizes


def test_padding_is_below_a_block_an_expert():
    assert padded_sizes([0, 1, 4, 5, 8], 4) == [0, 4, 4, 8, 8]


def test_one_expert_is_an_mlp():
    torch.manual_seed(0)
    layer, x = MegaBlocks(6, hidden=8, num_experts=1, block=4, renormalise=True), torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(x), F.gelu(x @ layer.w1[0].T) @ layer.w2[0])


@pytest.mark.parametrize("block", [1, 2, 8])
def test_the_block_changes_nothing(block):
    torch.manual_seed(0)
    x, w1, w2, gates = torch.randn(7, 6), torch.randn(3, 8, 6), torch.randn(3, 8, 6), torch.rand(7, 2)
    experts = torch.tensor([[0, 2]] * 7)
    whole = megablocks_mlp(x, w1, w2, gates, experts, block=4)
    torch.testing.assert_close(megablocks_mlp(x, w1, w2, gates, experts, block=block), whole)


def test_all_tokens_to_one_expert_are_all_computed():
    torch.manual_seed(0)
    layer, x = MegaBlocks(6, hidden=8, num_experts=4, block=4), torch.randn(50, 6)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[3] = x.sum(0)
    x = x.abs() * x.sum(0).sign()  # all prefer expert 3
    gate = layer.router(x).softmax(1)[:, 3:]
    torch.testing.assert_close(layer(x), gate * (F.gelu(x @ layer.w1[3].T) @ layer.w2[3]))


def test_no_tokens_are_no_tokens():
    layer, x = MegaBlocks(6, hidden=8, block=4), torch.zeros(0, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 6)


def test_every_part_learns():
    torch.manual_seed(0)
    layer = MegaBlocks(6, hidden=8, num_experts=3, top_k=2, block=4)
    layer(torch.randn(3, 20, 6)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_a_block_that_does_not_divide_raises():
    with pytest.raises(ValueError, match="hidden must be a multiple of the block of 128, got 96; choose a smaller"):
        MegaBlocks(6, hidden=96)
    x, w, gates = torch.zeros(1, 6), torch.zeros(1, 8, 6), torch.ones(1, 1)
    with pytest.raises(ValueError, match="block must divide the 8 hidden channels, got 3; choose another"):
        megablocks_mlp(x, w, w, gates, torch.zeros(1, 1, dtype=torch.long), block=3)
