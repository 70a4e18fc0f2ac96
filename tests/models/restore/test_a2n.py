import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.a2n import A2N, AttentionBlock

SMALL = {"dim": 8, "up_dim": 3, "depth": 2}


def drawn(scale=2, **words):
    """A network whose blocks weigh their branches differently for each picture."""
    torch.manual_seed(0)
    network = A2N(scale, **SMALL | words).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter)).mul_(10 if "weigh." in name else 1)
    return network


@pytest.mark.parametrize("branches", [{}, {"plain": False}, {"attention": False}, {"kernel_size": 1}])
@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1), (4, 3)])
def test_shape(scale, channels, branches):
    out = A2N(scale, in_channels=channels, **SMALL, **branches)(torch.rand(2, channels, 3, 1))
    assert out.shape == (2, channels, 3 * scale, scale)


def reference(network, x, *, attention=True, plain=True):
    """The equations for one picture."""
    state = dict(network.named_parameters())

    def conv(name, x):
        weight = state[name + ".weight"]
        return F.conv2d(x, weight, state.get(name + ".bias"), padding=weight.shape[-1] // 2)

    def leaky(x):
        return x.clamp(min=0) + 0.2 * x.clamp(max=0)

    def block(name, x):
        y, pi = leaky(conv(name + ".conv_first", x)), (1, 1)
        if attention and plain:
            hidden = (state[name + ".weigh.0.weight"] @ y.mean((2, 3))[0]).clamp(min=0)
            pi = torch.exp(state[name + ".weigh.2.weight"] @ hidden / 30)
            pi = pi / pi.sum()
        mixed = 0
        if attention:
            gate = conv(name + ".attention.k2", leaky(conv(name + ".attention.k1", y))).sigmoid()
            mixed = pi[0] * conv(name + ".attention.k4", conv(name + ".attention.k3", y) * gate)
        if plain:
            mixed = mixed + pi[1] * conv(name + ".plain", y)
        return x + conv(name + ".conv_last", leaky(mixed))

    features = trunk = conv("conv_first", x)
    for i in range(len(network.trunk)):
        trunk = block(f"trunk.{i}", trunk)
    features = features + conv("trunk_conv", trunk)
    for i, up in enumerate(network.up):
        features = features.repeat_interleave(up.scale, 2).repeat_interleave(up.scale, 3)
        features = conv(f"up.{i}.conv1", features)
        features = leaky(features * conv(f"up.{i}.attention.conv", features).sigmoid())
        features = leaky(conv(f"up.{i}.conv2", features))
    return conv("conv_last", features) + F.interpolate(x, scale_factor=network.scale, mode="bilinear")


@pytest.mark.parametrize("branches", [{}, {"plain": False}, {"attention": False}])
@pytest.mark.parametrize("scale", [3, 4])
def test_equals_the_equations_for_each_picture(scale, branches):
    network = drawn(scale, **branches)
    x = torch.rand(3, 3, 5, 7, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1])[:, None, None, None]
    ours, theirs = network(x), torch.cat([reference(network, one[None], **branches) for one in x])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    weights = torch.randn(ours.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), list(network.parameters())) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_the_weights_are_shares_that_depend_on_the_picture():
    block = drawn().trunk[0]
    pi = block.weights(torch.rand(2, 8, 3, 3, dtype=torch.float64) * torch.tensor([0.1, 5])[:, None, None, None])
    torch.testing.assert_close(pi.sum(1), torch.ones(2, dtype=torch.float64))
    assert not torch.allclose(pi[0], pi[1], atol=1e-3)
    assert AttentionBlock(4, plain=False).weights(torch.rand(2, 4, 3, 3)).tolist() == [[1, 0], [1, 0]]
    assert AttentionBlock(4, attention=False).weights(torch.rand(1, 4, 3, 3)).tolist() == [[0, 1]]


def test_equal_branches_make_their_weights_meaningless():
    """Shares of one thing add up to that thing."""
    block, x = drawn().trunk[0], torch.rand(2, 8, 3, 3, dtype=torch.float64)
    block.attention = block.plain
    alone = block.plain(F.leaky_relu(block.conv_first(x), 0.2))
    torch.testing.assert_close(block(x), x + block.conv_last(F.leaky_relu(alone, 0.2)))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"scale": 5}, "scale must be 2, 3 or 4, got 5"),
        ({"kernel_size": 2}, "kernel_size must be odd, got 2; take 3"),
        ({"dim": 3}, "dim must be at least 4, got 3"),
        ({"attention": False, "plain": False}, "attention and plain must not both be False; a block has at least one"),
    ],
)
def test_wrong_arguments_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        A2N(**words)
