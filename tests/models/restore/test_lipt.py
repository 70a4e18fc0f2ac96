import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.lipt import LIPT, BranchedConv2d, SparseWindowAttention, attention_maps, lipt_base, sparse

SMALL = {"dim": 4, "depth": 2, "window": 4}


def drawn(module):
    """A module all of whose parameters and statistics count."""
    torch.manual_seed(1)
    for name, x in module.double().state_dict().items():
        if name.endswith("running_var"):
            x.uniform_(0.5, 2)
        elif x.is_floating_point():
            x.add_(0.2 * torch.randn_like(x))
    return module


@pytest.mark.parametrize("size", [(1, 3), (4, 4), (5, 11)])
@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (2, 3), (3, 1)])
def test_shape(scale, channels, size):
    out = LIPT(scale, in_channels=channels, **SMALL)(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, scale * size[0], scale * size[1])


def branches(module, x):
    """The six branches by their equations, in evaluation; the border of a 1×1 sees 0."""
    state = module.state_dict()

    def norm(name, x):
        shape = (-1, 1, 1)
        mean, var = (state[f"{name}.running_{part}"].view(shape) for part in ("mean", "var"))
        return (x - mean) / (var + 1e-5).sqrt() * state[name + ".weight"].view(shape) + state[name + ".bias"].view(
            shape
        )

    def conv(name, x):
        return F.conv2d(x, state[name + ".weight"], state.get(name + ".bias"))

    wide = F.pad(x, (1, 1, 1, 1))
    full, point = norm("full.1", conv("full.0", wide)), norm("point.1", conv("point.0", x))
    around = norm("mean.1", conv("mean.0", wide)).unfold(2, 3, 1).unfold(3, 3, 1).mean((-1, -2))
    mixed = norm("deep.1", wide + conv("deep.0", wide))
    total = full + point + norm("mean.3", around) + norm("deep.3", conv("deep.2", mixed))
    root = 2**0.5
    edges = {"across": [[1, 0, -1], [root, 0, -root], [1, 0, -1]], "down": [[1, root, 1], [0, 0, 0], [-1, -root, -1]]}
    for name, kernel in edges.items():
        seen = conv(name + ".conv", wide)
        for c in range(seen.shape[1]):
            one = F.conv2d(seen[:, c : c + 1], torch.tensor(kernel, dtype=x.dtype)[None, None])[:, 0]
            total[:, c] += state[name + ".scale"][c].squeeze() * one + state[name + ".bias"][c]
    return total


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_a_branched_convolution_is_its_branches_and_folds(size):
    module, x = drawn(BranchedConv2d(3, 5)).eval(), torch.randn(2, 3, *size, dtype=torch.float64)
    expected = branches(module, x)
    # The filters are stored in single precision.
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-6)
    conv = module.fold()
    assert conv.weight.shape == (5, 3, 3, 3)
    torch.testing.assert_close(conv(x), module(x), rtol=0, atol=1e-12)


def test_folding_keeps_the_picture_and_leaves_the_network_alone():
    network, x = drawn(LIPT(3, **SMALL | {"depth": 4})).eval(), torch.rand(1, 3, 6, 5, dtype=torch.float64)
    before = network(x)
    folded = network.fold()
    torch.testing.assert_close(folded(x), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded.fold()(x), folded(x), rtol=0, atol=0)
    assert torch.equal(network(x), before)
    kinds = {type(module) for module in folded.modules()}
    assert BranchedConv2d not in kinds
    assert torch.nn.BatchNorm2d not in kinds


def test_sparse_windows_take_every_second_row_of_two_windows():
    x = torch.arange(12)[:, None].expand(12, 8).view(1, 1, 12, 8)
    rows = sparse(x, 4)[0, 0, :, 0].tolist()
    assert rows == [0, 2, 5, 7, 4, 6, 9, 11, 8, 10, 1, 3]
    assert torch.equal(sparse(x.mT, 4), sparse(x, 4).mT)
    pixels = torch.arange(96).view(1, 1, 12, 8)
    assert torch.equal(sparse(pixels, 4).flatten().sort().values, pixels.flatten())


def dense(layer, x):
    """Every token against every token, masked by the numbers of windows; the outputs stand in their windows."""
    w, (height, width) = layer.window, x.shape[2:]
    made = layer.project(x).roll((-layer.shift, -layer.shift), (2, 3))
    places = torch.arange(height * width).view(1, 1, height, width)
    window = (places // width // w * (width // w) + places % width // w).flatten()
    apart = window[:, None] != window
    out = []
    for half, order in zip(made.chunk(2, 1), (places, sparse(places, w)), strict=True):
        query, value = half.flatten(2).mT[:, order.flatten()].chunk(2, -1)
        out.append((query @ query.mT).masked_fill(apart, float("-inf")).softmax(-1) @ value)
    back = torch.cat(out, -1).mT.reshape(x.shape).roll((layer.shift, layer.shift), (2, 3))
    return layer.out(back)


@pytest.mark.parametrize(("size", "window", "shift"), [((4, 8), 4, 0), ((8, 12), 4, 2), ((6, 6), 6, 3)])
def test_equals_dense_attention_with_a_mask(size, window, shift):
    layer = drawn(SparseWindowAttention(4, window, shift=shift)).eval()
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(x)[0], dense(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(x.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()]) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_token_takes_most_of_those_that_are_like_it():
    query = torch.tensor([[[3.0, 0], [3, 0], [0, 3]]])
    maps = attention_maps(query)
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 3))
    torch.testing.assert_close(maps[0, 0, 0] / maps[0, 0, 2], torch.tensor(9.0).exp())


def test_every_second_sub_block_reuses_maps_and_every_second_block_is_shifted():
    network = LIPT(2, **SMALL | {"depth": 8})
    layers = [block.attention for block in network.body]
    assert [layer.shift for layer in layers] == [0, 0, 2, 2, 0, 0, 2, 2]
    assert [layer.project[0].out_channels for layer in layers] == [8, 4] * 4
    x = torch.rand(1, 4, 8, 8)
    maps = layers[0](x)[1]
    assert [tuple(one.shape) for one in maps] == [(4, 16, 16)] * 2
    same = tuple(torch.eye(16).expand(4, 16, 16) for _ in range(2))
    expected = layers[1].out(layers[1].project(x))
    torch.testing.assert_close(layers[1](x, same)[0], expected)


def test_sizes():
    assert [block.attention.window for block in lipt_base(2, depth=2).body] == [16, 16]
    assert len(LIPT().body) == 10


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"depth": 3}, "depth must be a multiple of shared = 2, got 3"),
        ({"dim": 5}, "dim must be even, one half for each kind of window, got 5"),
        ({"window": 5}, "window must be even, got 5; take 6"),
    ],
)
def test_wrong_arguments_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        LIPT(**SMALL | words)
