import pytest
import torch
from torch.nn import functional as F

from foveal.nn.windows import WindowAttention, hidden, joined, regions, to_multiple, window_attention, windowed


def dense(q, k, v, table, *, window, num_heads, shift):
    """Attention over all pairs of tokens, masked by the number of each token's window on the map as it lies."""
    height, width, dim = q.shape[1:]
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    number = torch.stack([(place[:, i] - shift[i]).div(window[i], rounding_mode="floor") for i in (0, 1)], 1)
    together = (number[:, None] == number[None]).all(-1)
    offset = place[:, None] - place[None]
    i, j = ((offset[..., i] + window[i] - 1).clamp(0, 2 * window[i] - 2) for i in (0, 1))
    q, k, v = (x.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / (dim // num_heads) ** 0.5 + table.unflatten(0, (2 * window[0] - 1, -1))[i, j].permute(2, 0, 1)
    out = scores.masked_fill(~together, float("-inf")).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2).unflatten(1, (height, width))


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        *[((8, 12), (4, 4), (0, 0)), ((8, 12), (4, 4), (2, 2)), ((7, 9), (4, 4), (2, 2)), ((7, 9), (2, 5), (1, 3))],
        *[((3, 2), (4, 4), (2, 0)), ((1, 1), (4, 4), (3, 3)), ((5, 13), (3, 8), (0, 4))],
    ],
)
def test_equals_dense_attention_with_a_mask(size, window, shift):
    torch.manual_seed(0)
    layer = WindowAttention(6, 2, window, shift).double()
    torch.nn.init.normal_(layer.bias.relative_position_bias_table)
    x = torch.randn(2, 6, *size, dtype=torch.float64).permute(0, 2, 3, 1).requires_grad_()
    table = layer.bias.relative_position_bias_table
    q, k, v = layer.qkv(x).chunk(3, -1)
    theirs = layer.proj(dense(q, k, v, table, window=window, num_heads=2, shift=shift))
    torch.testing.assert_close(layer(x), theirs, rtol=0, atol=1e-12)
    weights = torch.randn(x.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()]) for out in (layer(x), theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("size", "shift"), [((6, 8), (0, 0)), ((5, 9), (1, 3)), ((1, 1), (2, 3))])
def test_joining_undoes_cutting(size, shift):
    x = torch.rand(2, *size, 3)
    cut = windowed(x, (3, 4), shift)
    assert cut.shape[1:] == (12, 3)
    assert torch.equal(joined(cut, (3, 4), *size, shift), x)


def test_one_window_is_plain_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6).unbind(0)
    plain = F.scaled_dot_product_attention(*(x.flatten(1, 2)[:, None] for x in (q, k, v)))[:, 0].unflatten(1, (4, 5))
    torch.testing.assert_close(window_attention(q, k, v, window=(4, 5), num_heads=1), plain)


def test_regions_of_a_row():
    assert regions(1, 5, (1, 3), (0, 1)).tolist() == [[0, 0, 0], [0, 2, 1]]
    assert hidden(torch.tensor([[0, 1]]), torch.tensor([[1]])).tolist() == [[[float("-inf")], [0]]]


def test_pictures_are_extended_by_their_reflection():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(to_multiple(x, 5), F.pad(x, (0, 1, 0, 2), mode="reflect"))
    assert torch.equal(
        to_multiple(x, 8), F.pad(F.pad(x, (0, 0, 0, 5), mode="replicate"), (0, 4, 0, 0), mode="replicate")
    )
    assert to_multiple(x, 1) is x


def test_wrong_arguments_are_refused():
    x = torch.rand(1, 4, 4, 6)
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads = 4, got 6"):
        window_attention(x, x, x, window=(2, 2), num_heads=4)
    for shift in ((2, 0), (0, -1)):
        with pytest.raises(
            ValueError, match=r"shift must be at least 0 and less than window = \(2, 2\), got .*; take half"
        ):
            window_attention(x, x, x, window=(2, 2), num_heads=2, shift=shift)
