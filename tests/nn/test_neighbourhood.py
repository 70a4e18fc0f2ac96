import pytest
import torch

from foveal.nn.neighbourhood import dense_attention, neighbourhood_scores, neighbourhood_sum, neighbours


def attention(tensors, bias, near):
    query, key, value = tensors
    return neighbourhood_sum(neighbourhood_scores(query, key, near, bias).softmax(-1), value, near)


@pytest.mark.parametrize(("height", "width", "dilation"), [(7, 5, 1), (11, 8, 2), (9, 13, 3), (4, 1, 1), (2, 5, 2)])
def test_it_is_dense_attention_with_the_others_masked(height, width, dilation):
    torch.manual_seed(0)
    tensors = torch.randn(3, 2, 2, height * width, 3, requires_grad=True)
    bias = torch.randn(2, 5, 5, requires_grad=True)
    ours = attention(tensors.unbind(), bias, neighbours(height, width, 3, dilation=dilation))
    theirs = dense_attention(*tensors.unbind(), bias, height, width, 3, dilation)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    weights = torch.randn(ours.shape)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), (tensors, bias)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_another_dilation_is_not_the_same():
    tensors, bias = torch.randn(3, 1, 1, 64, 4).unbind(), torch.zeros(1, 5, 5)
    near, far = (attention(tensors, bias, neighbours(8, 8, 3, dilation=dilation)) for dilation in (1, 2))
    assert (near - far).abs().max() > 0.01


def test_neighbours_by_hand():
    near = neighbours(1, 7, 3, dilation=2)
    columns = near.index.unflatten(1, (3, 3))[:, 0]
    assert columns[near.inside.unflatten(1, (3, 3))[:, 0]].view(7, 3).tolist() == [
        [0, 2, 4],
        [1, 3, 5],
        [0, 2, 4],
        [1, 3, 5],
        [2, 4, 6],
        [1, 3, 5],
        [2, 4, 6],
    ]
    assert near.inside.sum(1).tolist() == [3] * 7
    # one row: every neighbour is zero rows away, the middle row of the table
    assert set((near.offset[near.inside] // 5).tolist()) == {2}


@pytest.mark.parametrize(("side", "dilation"), [(2, 1), (3, 1), (6, 2), (9, 3), (30, 3)])
def test_without_a_dilation_the_window_spans_what_it_can(side, dilation):
    ours, want = neighbours(side, side, 3, dilation=None), neighbours(side, side, 3, dilation=dilation)
    assert torch.equal(ours.index, want.index)
    assert torch.equal(ours.inside, want.inside)
    assert torch.equal(ours.offset, want.offset)


def test_what_cannot_be_raises():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; take 5"):
        neighbours(8, 8, 4)
    with pytest.raises(ValueError, match="dilation must be at least 1, got 0; 1 skips nothing"):
        neighbours(8, 8, 3, dilation=0)
