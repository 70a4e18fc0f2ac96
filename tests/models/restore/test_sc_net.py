import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.sc_net import SCNet


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("scale", "size"), [(2, (1, 1)), (3, (5, 2)), (4, (3, 7)), (8, (2, 3))])
def test_shape(scale, size, shuffle):
    out = SCNet(scale, dim=8, depth=1, shuffle=shuffle)(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])


def reference(network, x):
    """The paper's order (shift, then ReLU), with the eight directions written out."""
    state = network.state_dict()

    def conv(name, x):
        return F.conv2d(x, state[name + ".weight"], state[name + ".bias"])

    def shift(x):
        part, (height, width) = x.shape[1] // 8, x.shape[2:]
        ways = [(-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
        out = torch.zeros_like(x)
        for c in range(x.shape[1]):
            dy, dx = ways[c // part]
            for i in range(height):
                for j in range(width):
                    if 0 <= i + dy < height and 0 <= j + dx < width:
                        out[:, c, i, j] = x[:, c, i + dy, j + dx]
        return out

    features = F.leaky_relu(conv("conv_first", x), 0.1)
    for i in range(len(network.body)):
        features = features + conv(f"body.{i}.conv2", F.relu(shift(conv(f"body.{i}.conv1", features))))
    for i, up in enumerate(network.up):
        if not up.shuffle:
            features = F.interpolate(features, scale_factor=up.scale, mode="bilinear")
        features = conv(f"up.{i}.conv2", shift(F.leaky_relu(conv(f"up.{i}.conv1", features), 0.02)))
        features = F.leaky_relu(F.pixel_shuffle(features, up.scale) if up.shuffle else features, 0.1)
    out = conv("conv_last", F.leaky_relu(conv("conv_hr", features), 0.1))
    return out + F.interpolate(x, scale_factor=network.scale, mode="bilinear")


@pytest.mark.parametrize("shuffle", [True, False])
def test_equals_the_equations(shuffle):
    torch.manual_seed(0)
    network = SCNet(4, dim=8, depth=2, shuffle=shuffle).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        x = torch.rand(1, 3, 5, 4, dtype=torch.float64)
        torch.testing.assert_close(network(x), reference(network, x), rtol=0, atol=1e-12)


def test_starts_near_bilinear():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8)
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear")
    assert (SCNet(2, dim=16, depth=2)(x) - bilinear).abs().max() < 1e-2


@pytest.mark.parametrize(("scale", "shuffle"), [(2, True), (4, False)])
def test_nothing_beyond_the_margin_is_seen(scale, shuffle):
    torch.manual_seed(0)
    network = SCNet(scale, dim=8, depth=2, shuffle=shuffle).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    m, side = network.margin, 21
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    network(x)[..., 10 * scale : 11 * scale, :].sum().backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    reached = max(10 - int(rows.min()), int(rows.max()) - 10)
    assert m - 2 <= reached <= m


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="scale must be 2, 3, 4 or 8, got 5"):
        SCNet(5)
