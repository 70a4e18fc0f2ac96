import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.bairnet import BAIRNet, Rescaler, rescaling_loss
from foveal.nn.rescaling import cells, resampled, resized, rounded


def moved(network):
    """Every parameter away from where it starts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def reference(network, x, size):
    """The equations, layer by layer."""
    state = network.state_dict()

    def conv(name, x):
        weight = state[name + ".weight"]
        return F.conv2d(x, weight, state[name + ".bias"], padding=weight.shape[-1] // 2)

    def blocks(name, first, count, y):
        for i in range(first, first + count):
            y = y + conv(f"{name}.{i}.layers.2", F.gelu(conv(f"{name}.{i}.layers.0", y)))
        return y

    y = blocks("head", 2, len(network.head) - 2, F.gelu(conv("head.0", x)))
    told = cells(x.shape[-2:], size).to(x)[None].repeat(len(x), 1, 1, 1)
    places = told[:, :1], told[:, 1:2]
    a, b, c = conv("read", torch.cat([resampled(y, size), told], 1)).chunk(3, 1)
    y = F.gelu(a + places[0] * b + places[1] * c)
    return resized(x, size) + conv("tail", blocks("body", 0, len(network.body), y))


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 1)])
@pytest.mark.parametrize("size", [(3, 5), (11, 4), (14, 19)])
def test_one_direction_equals_the_equations(before, after, size):
    network = moved(Rescaler(4, before=before, after=after).double())
    x, y = (torch.rand(2, 3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    x.requires_grad_()
    y.requires_grad_()
    ours, theirs = network(x, size), reference(network, y, size)
    torch.testing.assert_close(ours, theirs)
    weights = torch.rand_like(ours)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * weights).sum(), at)[0] for out, at in ((ours, x), (theirs, y)))
    )


def test_it_starts_as_bicubic():
    network, x = BAIRNet(dim=4, depth=1, fine=1), torch.rand(1, 3, 13, 10)
    assert torch.equal(network.down(x, (5, 8)), rounded(resized(x, (5, 8))))
    torch.testing.assert_close(network(x, (5, 8)), resized(rounded(resized(x, (5, 8))), (13, 10)))
    torch.testing.assert_close(network(x), resized(rounded(resized(x, (7, 5))), (13, 10)))


def test_the_same_size_with_nothing_learnt_keeps_the_picture():
    x = torch.randint(256, (1, 3, 6, 7)) / 255
    torch.testing.assert_close(BAIRNet(dim=4, depth=1, fine=0)(x, (6, 7)), x)


def test_small_pictures_are_files_of_8_bits_and_teach_the_network_that_made_them():
    network, x = moved(BAIRNet(dim=4, depth=1, fine=0)), torch.rand(1, 3, 9, 8)
    small = network.down(x, (4, 3))
    levels = small * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert 0 <= small.min() <= small.max() <= 1
    F.l1_loss(network.up(small, (9, 8)), x).backward()
    assert all(p.grad.abs().sum() > 0 for p in network.reduce.parameters())


def test_position_and_scale_are_seen():
    network, x = moved(BAIRNet(dim=4, depth=0, fine=0)), torch.full((1, 3, 8, 8), 0.5)
    inner = network.up(x, (12, 12))[0, 0, 4:8, 4:8].detach()
    assert not torch.allclose(inner[0, 0], inner[0, 1], atol=1e-5)
    assert not torch.allclose(inner.mean(), network.up(x, (24, 24))[0, 0, 8:16, 8:16].mean(), atol=1e-5)


def test_the_loss_by_hand():
    x = torch.full((1, 3, 4, 4), 0.5)
    assert rescaling_loss(x, torch.full((1, 3, 2, 2), 0.7), x - 0.1, guide=2).item() == pytest.approx(0.1 + 2 * 0.04)


def test_wrong_directions_are_refused():
    network, x = BAIRNet(dim=4, depth=1, fine=0), torch.rand(1, 3, 5, 6)
    with pytest.raises(ValueError, match=r"sides must be from 1 to \(5, 6\), got \(5, 7\); `up` makes pictures larger"):
        network.down(x, (5, 7))
    with pytest.raises(ValueError, match=r"sides must be from 1 to \(5, 6\), got \(0, 2\)"):
        network.down(x, (0, 2))
    with pytest.raises(ValueError, match=r"sides must be at least \(5, 6\), got \(4, 8\); `down` makes pictures sma"):
        network.up(x, (4, 8))
