import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.srformer import PermutedAttention, SRFormer, SRFormerBlock

SMALL = {"dim": 8, "depths": (2,), "num_heads": 2, "window": 4}


def dense(layer, x):
    """Attention of every query to every group of r×r tokens, masked by the numbers of their windows."""
    r, window, shift = layer.reduction, layer.window, layer.shift
    batch, height, width, dim = x.shape
    # (2, B, groups, C)
    cells = layer.kv(x).unflatten(3, (2, -1)).unflatten(2, (-1, r)).unflatten(1, (-1, r))
    key, value = cells.permute(5, 0, 1, 3, 2, 4, 6).reshape(2, batch, -1, dim)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)) // r
    groups = torch.cartesian_prod(torch.arange(height // r), torch.arange(width // r))
    number = [(at - shift // r).div(window // r, rounding_mode="floor") for at in (places, groups)]
    together = (number[0][:, None] == number[1]).all(-1)
    offset = (places[:, None] - groups + window // r - 1).clamp(0, 2 * (window // r) - 2)
    table = layer.bias.relative_position_bias_table.unflatten(0, (2 * (window // r) - 1, -1))
    bias = table[offset[..., 0], offset[..., 1]].permute(2, 0, 1).masked_fill(~together, float("-inf"))
    q, k, v = (y.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for y in (layer.q(x).flatten(1, 2), key, value))
    scores = q @ k.mT / q.shape[-1] ** 0.5 + bias
    return layer.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    ("size", "window", "reduction", "shift"),
    [((4, 8), 4, 2, 0), ((8, 12), 4, 2, 2), ((6, 12), 6, 3, 3), ((5, 10), 5, 1, 2), ((8, 16), 8, 2, 4)],
)
def test_equals_dense_attention_with_a_mask(size, window, reduction, shift):
    torch.manual_seed(0)
    layer = PermutedAttention(36, 3, window, reduction=reduction, shift=shift).double()
    torch.nn.init.normal_(layer.bias.relative_position_bias_table)
    x = torch.randn(2, 36, *size, dtype=torch.float64).permute(0, 2, 3, 1).requires_grad_()
    ours, theirs = layer(x), dense(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(x.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()]) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_a_block_is_attention_then_convolution():
    torch.manual_seed(0)
    block, x = SRFormerBlock(8, 2, 4, shift=2).double(), torch.randn(1, 8, 12, 8, dtype=torch.float64)
    state = block.state_dict()

    def norm(name, x):
        return F.layer_norm(x, (8,), state[name + ".weight"], state[name + ".bias"])

    y = x + dense(block.attn, norm("norm1", x))
    z = F.gelu(norm("norm2", y) @ state["mlp.fc1.weight"].mT + state["mlp.fc1.bias"])
    near = F.conv2d(z.movedim(3, 1), state["mlp.dwconv.weight"], state["mlp.dwconv.bias"], padding=2, groups=16)
    z = z + F.gelu(near.movedim(1, 3))
    expected = y + z @ state["mlp.fc2.weight"].mT + state["mlp.fc2.bias"]
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 3), (4, 4), (5, 11)])
@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1)])
def test_shape(scale, channels, size):
    out = SRFormer(scale, in_channels=channels, **SMALL)(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, scale * size[0], scale * size[1])


def test_a_picture_is_reflected_to_whole_windows():
    torch.manual_seed(0)
    network, x = SRFormer(2, **SMALL).eval(), torch.rand(1, 3, 6, 7)
    larger = F.pad(x, (0, 1, 0, 2), mode="reflect")
    assert torch.equal(network(x), network(larger)[..., :12, :14])


def test_every_second_block_is_shifted():
    network = SRFormer(2, **SMALL | {"depths": (3, 2)})
    assert [[block.attn.shift for block in group.blocks] for group in network.layers] == [[0, 2, 0], [0, 2]]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        SRFormer(0, **SMALL)
    for dim, heads in ((8, 3), (6, 2)):
        text = f"dim must be a multiple of num_heads = {heads} and of r² = 4, got {dim}"
        with pytest.raises(ValueError, match=text):
            PermutedAttention(dim, heads, 4)
    for window, shift in ((5, 0), (4, 1), (4, 4), (4, -2)):
        text = f"multiples of r = 2 with 0 ≤ shift < window, got {window} and {shift}"
        with pytest.raises(ValueError, match=text):
            PermutedAttention(8, 2, window, shift=shift)
    with pytest.raises(ValueError, match="H and W must be multiples of window = 4, got 8 and 6; pad with"):
        PermutedAttention(8, 2, 4)(torch.rand(1, 8, 6, 8))
