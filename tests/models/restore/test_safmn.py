import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.safmn import SAFMN, channel_norm


def test_names_are_those_of_the_authors():
    names = set(SAFMN(2, dim=8, depth=1).state_dict())
    assert {"to_feat.weight", "feats.0.norm1.weight", "feats.0.safm.mfr.3.bias", "feats.0.safm.aggr.weight"} <= names
    assert {"feats.0.ccm.ccm.0.weight", "feats.0.ccm.ccm.2.bias", "to_img.0.weight"} <= names


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (16, 24), (17, 31)])
@pytest.mark.parametrize("scale", [2, 3])
def test_shape(scale, size):
    out = SAFMN(scale, dim=8, depth=1)(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])


def reference(network, x):
    """The equations, one pixel cell at a time, for one picture."""
    state = network.state_dict()

    def conv(name, x, **kwargs):
        return F.conv2d(x, state[name + ".weight"], state[name + ".bias"], **kwargs)

    def norm(name, x):
        mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
        scaled = (x - mean) / (variance + 1e-6).sqrt()
        return scaled * state[name + ".weight"].view(1, -1, 1, 1) + state[name + ".bias"].view(1, -1, 1, 1)

    def pooled(x, level):
        h, w = x.shape[2] // 2**level, x.shape[3] // 2**level
        out = x.new_empty(*x.shape[:2], h, w)
        for i in range(h):
            for j in range(w):
                top, bottom = i * x.shape[2] // h, -(-(i + 1) * x.shape[2] // h)
                left, right = j * x.shape[3] // w, -(-(j + 1) * x.shape[3] // w)
                out[..., i, j] = x[..., top:bottom, left:right].amax((2, 3))
        return out

    def modulated(block, x):
        part = x.shape[1] // 4
        seen = []
        for level in range(4):
            s = x[:, level * part : (level + 1) * part]
            s = conv(f"{block}.safm.mfr.{level}", pooled(s, level), padding=1, groups=part)
            rows = torch.arange(x.shape[2]) * s.shape[2] // x.shape[2]
            columns = torch.arange(x.shape[3]) * s.shape[3] // x.shape[3]
            seen.append(s[:, :, rows][..., columns])
        return F.gelu(conv(f"{block}.safm.aggr", torch.cat(seen, 1))) * x

    begin = x = conv("to_feat", x, padding=1)
    for i in range(len(network.feats)):
        block = f"feats.{i}"
        x = modulated(block, norm(f"{block}.norm1", x)) + x
        hidden = F.gelu(conv(f"{block}.ccm.ccm.0", norm(f"{block}.norm2", x), padding=1))
        x = conv(f"{block}.ccm.ccm.2", hidden) + x
    return F.pixel_shuffle(conv("to_img.0", x + begin, padding=1), network.scale)


@pytest.mark.parametrize("size", [(16, 8), (19, 27)])
def test_equals_the_equations(size):
    torch.manual_seed(0)
    network = SAFMN(2, dim=8, depth=2).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.rand(1, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(network(x), reference(network, x), rtol=0, atol=1e-10)


def test_channel_norm_is_layer_norm_over_channels():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 4, 5), torch.randn(6), torch.randn(6)
    theirs = F.layer_norm(x.permute(0, 2, 3, 1), (6,), weight, bias, eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(channel_norm(x, weight, bias), theirs)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    network = SAFMN(2, dim=8, depth=1)
    network(torch.rand(1, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_nothing_beyond_the_margin_is_seen():
    torch.manual_seed(0)
    network = SAFMN(2, dim=8, depth=1).eval()
    m, side = network.margin, 64
    x = torch.rand(1, 3, side, side, requires_grad=True)
    reached = 0
    for centre in range(24, 32):  # every position within a cell
        x.grad = None
        network(x)[..., 2 * centre : 2 * centre + 2, :].sum().backward()
        rows = x.grad.abs().sum((0, 1, 3)).nonzero()
        reached = max(reached, centre - int(rows.min()), int(rows.max()) - centre)
    assert m - 8 <= reached <= m


def test_a_scale_below_one_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        SAFMN(0)


def test_a_width_that_four_groups_cannot_share_is_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 10"):
        SAFMN(2, dim=10)
