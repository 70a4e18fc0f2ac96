import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.metalens_metaformer import (
    FusedAttention,
    MetalensMetaFormer,
    joined,
    transposed_attention,
    windows,
)


def small(**kwargs):
    torch.manual_seed(0)
    words = {"dim": 4, "depths": (1, 1), "num_heads": (1, 2), "window": 4, "kernels": torch.rand(2, 3, 5, 5)}
    return MetalensMetaFormer(**{**words, **kwargs})


@pytest.mark.parametrize(("height", "width", "size"), [(3, 6, 3), (8, 4, 2), (5, 5, 1)])
def test_windows_are_joined(height, width, size):
    x = torch.randn(2, 3, height, width)
    cut = windows(x, size)
    assert cut.shape == (2, height * width // size**2, size**2, 3)
    assert torch.equal(cut[0, 0], x[0, :, :size, :size].flatten(1).T)
    assert torch.equal(cut[0, -1], x[0, :, -size:, -size:].flatten(1).T)
    assert torch.equal(joined(cut, size, height, width), x)


def looped(layer, x):
    """STAF one query at a time."""
    heads, size = layer.num_heads, layer.window
    batch, dim, height, width = x.shape
    each = dim // heads
    spatial, near, far = layer.spatial(x).split(dim, 1), torch.zeros_like(x), torch.zeros_like(x)
    maps = layer.transposed_conv(layer.transposed(x)).split(dim, 1)
    for b in range(batch):
        for h in range(heads):
            own = slice(h * each, (h + 1) * each)
            for top in range(0, height, size):
                for left in range(0, width, size):
                    q, k, v = (t[b, own, top : top + size, left : left + size].reshape(each, -1).T for t in spatial)
                    for n, query in enumerate(q):
                        weights = (k @ query / each**0.5 + layer.position[h, n]).softmax(0)
                        near[b, own, top + n // size, left + n % size] = weights @ v
            q, k, v = (t[b, own].flatten(1) for t in maps)
            for c in range(each):
                scores = torch.stack([F.cosine_similarity(q[c], other, dim=0) for other in k])
                far[b, h * each + c] = ((scores * layer.temperature[h, 0, 0]).softmax(0) @ v).view(height, width)
    return layer.fuse(torch.cat([near, far], 1))


@pytest.mark.parametrize(("size", "heads", "window"), [((3, 6), 2, 3), ((4, 2), 1, 2)])
def test_attention_equals_plain_loops(size, heads, window):
    torch.manual_seed(0)
    layer = FusedAttention(4, heads, window).double()
    with torch.no_grad():
        layer.position.normal_()
        layer.temperature.uniform_(0.5, 2)
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(x), looped(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight, inputs = torch.randn_like(ours), (x, *layer.parameters())
    ours, theirs = (torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_one_channel_attends_to_itself():
    v = torch.randn(2, 3, 1, 7)
    assert torch.equal(transposed_attention(v, 2 * v, v, torch.ones(3, 1, 1)), v)


@pytest.mark.parametrize("size", [(1, 1), (9, 14)])
def test_any_size(size):
    x = torch.rand(1, 3, *size)
    assert small()(x).shape == x.shape


def test_it_adds_to_the_picture():
    network = small()
    torch.nn.init.zeros_(network.tail.weight)
    torch.nn.init.zeros_(network.tail.bias)
    x = torch.rand(1, 3, 7, 9)
    assert torch.equal(network(x), x)


def test_the_network_sees_the_bank():
    network, x = small(), torch.rand(1, 3, 8, 8)
    before = network(x)
    network.bank.kernels.mul_(2)
    assert not torch.allclose(network(x), before)
    network.head.weight.data[:, 3:] = 0
    after = network(x)
    network.bank.kernels.mul_(2)
    assert torch.equal(network(x), after)


def test_the_lens_is_part_of_the_state():
    network, other = small(), small(kernels=torch.rand(2, 3, 5, 5))
    other.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(network(x), other(x))


def test_without_ratios_there_is_no_bank():
    network = small(ratios=())
    assert network.bank is None
    assert network.head.in_channels == 3
    assert network(torch.rand(1, 3, 5, 6)).shape == (1, 3, 5, 6)


def test_every_parameter_gets_a_gradient():
    network = small()
    network(torch.rand(2, 3, 9, 10)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="restores at the same size, scale 1, got 3"):
        MetalensMetaFormer(3)


def test_levels_without_heads_are_refused():
    with pytest.raises(ValueError, match="give heads for each of 3 levels, got 1"):
        MetalensMetaFormer(num_heads=(1,))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads = 4, got 6"):
        FusedAttention(6, 4, 2)
