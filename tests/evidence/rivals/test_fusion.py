import pytest
import torch

from foveal.evidence.rivals.fusion import Concatenation, CrossAttention, TokenExchange


@pytest.mark.parametrize("rival", [Concatenation, CrossAttention, TokenExchange])
def test_shapes_are_kept_and_every_parameter_learns(rival):
    torch.manual_seed(0)
    block, (x, y) = rival(8), torch.randn(2, 2, 8, 3, 5)
    out = block(x, y)
    assert [stream.shape for stream in out] == [x.shape, y.shape]
    sum(stream.square().sum() for stream in out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_cross_attention_by_hand():
    torch.manual_seed(0)
    block, (x, y) = CrossAttention(4, num_heads=1), torch.randn(2, 1, 4, 2, 2)
    a, b = x.flatten(2).mT, y.flatten(2).mT
    k, v = block.key_value[0](b).chunk(2, -1)
    weights = (block.query[0](a) @ k.mT / 2).softmax(-1)
    torch.testing.assert_close(block(x, y)[0], x + block.out[0](weights @ v).mT.view(1, 4, 2, 2))


def test_the_lowest_scores_are_exchanged():
    torch.manual_seed(0)
    block, (x, y) = TokenExchange(4, share=0.25), torch.randn(2, 1, 4, 2, 4)
    a, b = x.flatten(2).mT[0], y.flatten(2).mT[0]
    score = block.scores[0](a)
    lowest = score[:, 0].argsort()[:2]
    wanted = score * a
    wanted[lowest] = block.project[0](b)[lowest]
    torch.testing.assert_close(block(x, y)[0][0].flatten(1).mT, wanted)
