import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.cfsr import CFSR, EdgeConv2d, edge_filters

SMALL = {"dim": 4, "depths": (2, 1), "kernel_size": 5}


def drawn(scale=2, **words):
    """A network all of whose parameters count."""
    torch.manual_seed(0)
    network = CFSR(scale, **SMALL | words).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("size", [(1, 1), (5, 2), (7, 9)])
@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (3, 1), (4, 3)])
def test_shape(scale, channels, size):
    out = CFSR(scale, in_channels=channels, **SMALL)(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, scale * size[0], scale * size[1])


def reference(network, x):
    """The equations, with each edge filter applied apart."""
    state = dict(network.named_parameters())

    def conv(name, x, *, padding=0, groups=1):
        return F.conv2d(x, state[name + ".weight"], state[name + ".bias"], padding=padding, groups=groups)

    def norm(name, x):
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return state[name + ".weight"][:, None, None] * scaled + state[name + ".bias"][:, None, None]

    def mixed(name, x):
        x = norm(name + ".norm", x)
        a = conv(name + ".a.2", F.gelu(conv(name + ".a.0", x)), padding=2, groups=x.shape[1])
        return conv(name + ".proj", a * conv(name + ".v", x))

    def fed(name, x):
        z = F.gelu(conv(name + ".fc1", norm(name + ".norm", x)))
        edges = conv(name + ".pos", z, padding=1, groups=z.shape[1])
        left, up = (torch.tensor([1.0, 2, 1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0, -1]) for _ in range(2))
        cross = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=x.dtype)
        for alpha, kernel in zip(state[name + ".pos.scales"], (left, up.mT, cross), strict=True):
            for c in range(z.shape[1]):
                seen = F.conv2d(z[:, c : c + 1], kernel[None, None], padding=1)
                edges = edges + F.pad(alpha[c] * seen, (0, 0, 0, 0, c, z.shape[1] - 1 - c))
        return conv(name + ".fc2", z + F.gelu(edges))

    begin = features = conv("conv_first", x - network.mean, padding=1)
    for i, depth in enumerate((2, 1)):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            features = features + state[block + ".layer_scale_1"][:, None, None] * mixed(block + ".attn", features)
            features = features + state[block + ".layer_scale_2"][:, None, None] * fed(block + ".mlp", features)
        features = conv(f"layers.{i}.conv", features) + features
    features = begin + conv("conv_after_body", norm("norm", features), padding=1)
    return F.pixel_shuffle(conv("upsample.0", features, padding=1), network.scale) + network.mean


@pytest.mark.parametrize("size", [(1, 5), (7, 9)])
def test_equals_the_equations(size):
    network, x = drawn(), torch.rand(2, 3, *size, dtype=torch.float64)
    ours, theirs = network(x), reference(network, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    weights = torch.randn(ours.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), list(network.parameters())) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_folding_keeps_the_picture_and_leaves_the_network_alone():
    network, x = drawn(3), torch.rand(1, 3, 6, 5, dtype=torch.float64)
    before = network(x)
    folded = network.fold()
    torch.testing.assert_close(folded(x), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(folded.fold()(x), before, rtol=0, atol=1e-12)
    assert torch.equal(network(x), before)
    assert not [name for name in folded.state_dict() if "scales" in name]
    assert "layers.0.blocks.1.mlp.pos.weight" in folded.state_dict()


def test_filters_see_edges_and_no_flat_colour():
    assert torch.equal(edge_filters().sum((1, 2)), torch.zeros(3))
    step = torch.tensor([[0.0, 0, 1]]).expand(3, 3)
    assert (edge_filters() * step).sum((1, 2)).tolist() == [-4, 0, 1]
    conv = EdgeConv2d(2)
    assert conv.scales.abs().max() < 0.01


@pytest.mark.parametrize("scale", [2, 3])
def test_nothing_beyond_the_margin_is_seen(scale):
    network = drawn(scale)
    x = torch.rand(1, 3, 1, 41, dtype=torch.float64, requires_grad=True)
    network(x)[..., 20 * scale : 21 * scale].abs().sum().backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero()
    assert (int(columns.min()), int(columns.max())) == (20 - network.margin, 20 + network.margin)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"kernel_size": 8}, "kernel_size must be odd, got 8; take 9"),
    ],
)
def test_wrong_arguments_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        CFSR(**words)
