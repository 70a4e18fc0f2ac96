import pytest
import torch

from foveal.nn.gather import kept, put, routed, take, top


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rest", [(5,), (2, 3), ()])
def test_rows_are_taken_and_put_back(batch, rest):
    torch.manual_seed(0)
    x = torch.randn(batch, 7, *rest).double().requires_grad_()
    index = torch.stack([torch.randperm(7)[:4].sort().values for _ in range(batch)])
    wanted = torch.stack([x[b, index[b]] for b in range(batch)])
    assert torch.equal(take(x, index), wanted)
    found = put(x, index, 2 * take(x, index))
    plain = x * torch.ones(batch, 7).scatter(1, index, 2.0).view(batch, 7, *[1] * len(rest))
    assert torch.equal(found, plain)
    toward = torch.randn(found.shape).double()
    gradients = [torch.autograd.grad((y * toward).sum(), x, retain_graph=True)[0] for y in (found, plain)]
    torch.testing.assert_close(*gradients)


def test_all_rows_and_none_are_exact_without_a_copy():
    x = torch.randn(2, 5, 3)
    every = torch.arange(5).expand(2, -1)
    assert routed(lambda y: y, x, every) is x
    assert routed(torch.exp, x, every[:, :0]) is x
    found = routed(torch.exp, x, every[:, 1:3])
    assert torch.equal(found[:, 1:3], x[:, 1:3].exp())
    assert torch.equal(found[:, [0, 3, 4]], x[:, [0, 3, 4]])


def test_kept_rounds_up_and_keeps_all_at_1():
    assert [kept(10, share) for share in (1.0, 0.95, 0.5, 0.01)] == [10, 10, 5, 1]
    assert kept(100, 0.07) == 7  # 0.07 · 100 is 7.000000000000001 in floats
    assert kept(10, 0.01, least=3) == 3


def test_top_keeps_the_order():
    score = torch.tensor([[0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0]])
    assert top(score, 2).tolist() == [[1, 3], [0, 1]]
    assert top(score, 4).tolist() == [[0, 1, 2, 3]] * 2
    assert top(score, 0).shape == (2, 0)
