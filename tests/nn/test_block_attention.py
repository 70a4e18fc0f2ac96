import pytest
import torch

from foveal.nn.block_attention import beside, beside_kept, dense, relation, rotated


def test_turning_depends_on_the_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 3, 8, dtype=torch.float64)

    def score(at, other):
        return (rotated(q, torch.tensor([at])) * rotated(k, torch.tensor([other]))).sum(-1)

    torch.testing.assert_close(score((5, 2), (3, 9)), score((15, 12), (13, 19)))
    assert not torch.allclose(score((5, 2), (3, 9)), score((5, 2), (9, 3)))
    torch.testing.assert_close(rotated(q, torch.tensor([(0, 0)])), q)
    first = rotated(torch.tensor([1.0, 0, 0, 0]).view(1, 1, 4), torch.tensor([(2, 7)])).flatten()
    torch.testing.assert_close(first, torch.tensor([2.0, 0, 0, 0]).cos() * torch.tensor([1.0, 0, 0, 0])
                               + torch.tensor([0, 2.0, 0, 0]).sin())  # fmt: skip


def test_relations_of_blocks():
    expected = torch.tensor(
        [[0, -1, -1, -1, -1, -1], [2, 0, -1, -1, -1, -1], [-1, 2, 0, -1, -1, -1],
         [3, -1, -1, 0, -1, -1], [1, 3, -1, 2, 0, -1], [-1, 1, 3, -1, 2, 0]]
    )  # fmt: skip
    assert torch.equal(relation(2, 3), expected)


@pytest.mark.parametrize(("rows", "columns", "n"), [(1, 1, 3), (2, 3, 4), (3, 1, 1)])
def test_blocks_at_once_equal_attention_under_a_mask(rows, columns, n):
    torch.manual_seed(0)
    given = [torch.randn(2, rows, columns, n, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    offsets = torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)
    ours, theirs = beside(*given, offsets), dense(*given, offsets)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), [*given, offsets]) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_one_block_after_the_other_keeps_what_it_needs():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 2, 3, 2, 4, dtype=torch.float64)
    offsets = torch.randn(4, 2, 4, dtype=torch.float64)
    whole, kept = dense(q, k, v, offsets), {}
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        own, at = [], (slice(None), slice(row, row + 1), slice(column, column + 1))
        others = [kept.get((row - 1, column - 1)), kept.get((row, column - 1)), kept.get((row - 1, column))]
        torch.testing.assert_close(beside_kept(others, own, q[at], k[at], v[at], offsets), whole[at])
        (kept[row, column],) = own
