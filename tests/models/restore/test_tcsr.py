import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.tcsr import TCSR, NeighbourhoodAttention, ShiftFeedForward, neighbourhood_attention, tcsr_l
from foveal.nn.neighbourhood import dense_attention

SMALL = {"dim": 8, "depths": (1,), "num_heads": 2, "kernel_size": 3}


def dense(query, key, value, bias):
    height, width = query.shape[2:4]
    flat = (x.flatten(2, 3) for x in (query, key, value))
    out = dense_attention(*flat, bias, height, width, (bias.shape[-1] + 1) // 2, 1)
    return out.unflatten(2, (height, width))


@pytest.mark.parametrize(
    ("size", "kernel_size", "tile"),
    [((7, 9), 3, 2), ((7, 9), 5, 3), ((4, 11), 7, 4), ((1, 6), 3, 8), ((3, 3), 5, 2), ((6, 6), 1, 4)],
)
def test_equals_dense_attention_with_a_mask(size, kernel_size, tile):
    torch.manual_seed(0)
    shape = (2, 3, *size, 4)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tensors.append(torch.randn(3, 2 * kernel_size - 1, 2 * kernel_size - 1, dtype=torch.float64, requires_grad=True))
    ours, theirs = neighbourhood_attention(*tensors, tile=tile), dense(*tensors)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), tensors) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_a_neighbourhood_of_one_pixel_is_the_value():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 7, 4)
    assert torch.equal(neighbourhood_attention(query, key, value, torch.randn(2, 1, 1), tile=3), value)


def test_a_pixel_in_the_middle_sees_its_neighbourhood_and_no_more():
    layer, x = NeighbourhoodAttention(4, 2, 5, tile=4), torch.rand(1, 11, 13, 4, requires_grad=True)
    layer(x)[0, 5, 6].sum().backward()
    seen = x.grad.abs().sum((0, 3)) > 0
    expected = torch.zeros(11, 13, dtype=torch.bool)
    expected[3:8, 4:9] = True
    assert torch.equal(seen, expected)


def reference(network, x):
    """The equations, token by token."""
    state = dict(network.named_parameters())

    def conv(name, x):
        return F.conv2d(x, state[name + ".weight"], state[name + ".bias"], padding=1)

    def linear(name, x):
        return x @ state[name + ".weight"].mT + state[name + ".bias"]

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"])

    first = features = conv("conv_first", x - network.mean)
    for i, group in enumerate(network.layers):
        y = features.permute(0, 2, 3, 1)
        for j, layer in enumerate(group.blocks):
            block, heads = f"layers.{i}.blocks.{j}", layer.attn.num_heads
            qkv = linear(block + ".attn.qkv", norm(block + ".norm1", y)).chunk(3, -1)
            q, k, v = (z.unflatten(3, (heads, -1)).permute(0, 3, 1, 2, 4) for z in qkv)
            out = dense(q / q.shape[-1] ** 0.5, k, v, state[block + ".attn.bias"])
            y = y + linear(block + ".attn.proj", out.permute(0, 2, 3, 1, 4).flatten(3))
            z = linear(block + ".mlp.fc1", norm(block + ".norm2", y))
            wide, moved = F.pad(z, (0, 0, 1, 1, 1, 1)), torch.empty_like(z)
            ways = ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (1, -1), (-1, 1), (-1, -1))
            part, (height, width) = z.shape[3] // 8, z.shape[1:3]
            for g, (dy, dx) in enumerate(ways):
                at = slice(g * part, (g + 1) * part)
                moved[..., at] = wide[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width, at]
            y = y + linear(block + ".mlp.fc2", F.gelu(moved))
        features = features + conv(f"layers.{i}.conv", y.permute(0, 3, 1, 2))
    features = first + conv("conv_after_body", features)
    return F.pixel_shuffle(conv("upsample", features), network.scale) + network.mean


def test_equals_the_equations():
    torch.manual_seed(0)
    network, x = TCSR(2, **SMALL | {"depths": (1, 2)}).double(), torch.rand(2, 3, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    torch.testing.assert_close(network(x), reference(network, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 3)])
@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (3, 1), (4, 3)])
def test_shape(scale, channels, size):
    out = TCSR(scale, in_channels=channels, **SMALL)(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, scale * size[0], scale * size[1])


def test_sizes():
    with torch.device("meta"):
        assert [len(group.blocks) for group in TCSR().layers] == [4, 4, 4, 4]
        assert [len(group.blocks) for group in tcsr_l().layers] == [7, 7, 7, 7]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        TCSR(0, **SMALL)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; take 5"):
        NeighbourhoodAttention(8, 2, 4)
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads = 3, got 8"):
        NeighbourhoodAttention(8, 3, 3)
    with pytest.raises(ValueError, match="expansion times dim must be a multiple of 8, got 2 times 6"):
        ShiftFeedForward(6)
