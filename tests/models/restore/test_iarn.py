import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.models.restore.iarn import IARN, Coupling, invertible_loss, split
from foveal.nn.rescaling import cells, resized, rounded


def moved(network, by=0.2):
    """Every parameter away from where it starts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return network


def test_a_block_by_hand():
    double, zero = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    nn.init.constant_(zero.weight, 0.0)
    y, z = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    a, b = Coupling(double, double, zero)(y, z)
    assert (a.item(), b.item()) == (7.0, 17.0)  # 1 + 2·3 and 3·e⁰ + 2·7
    b = Coupling(zero, zero, double)(y, z)[1]
    torch.testing.assert_close(b, 3 * (2 * torch.sigmoid(torch.tensor([[2.0]])) - 1).exp())


def test_the_parts_add_up_to_the_picture():
    x = torch.rand(2, 3, 9, 7)
    small, low, rest = split(x, (4, 5))
    assert small.shape == (2, 3, 4, 5)
    torch.testing.assert_close(low + rest, x)
    torch.testing.assert_close(low, resized(small, (9, 7)))


@pytest.mark.parametrize("size", [(3, 4), (7, 2), (9, 7), (1, 1)])
def test_blocks_are_undone_exactly(size):
    network = moved(IARN(dim=4, depth=3, layers=2).double())
    x = torch.rand(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, low, rest = split(x, size)
    mixed, dropped = network.mixed(low, rest, size)
    assert (mixed - low).abs().max() > 1e-2
    y, z = network.unmixed(mixed, dropped, size)
    torch.testing.assert_close(y, low, rtol=0, atol=1e-9)
    torch.testing.assert_close(y + z, x, rtol=0, atol=1e-9)


def reference(network, x, size):
    """The equations, block by block, as one function of x: the picture that comes back."""
    told = cells(size, x.shape[-2:]).to(x)[None].repeat(len(x), 1, 1, 1)

    def dense(part, y):
        seen = [y, told]
        for layer in part.layers:
            seen.append(F.leaky_relu(F.conv2d(torch.cat(seen, 1), layer.weight, layer.bias, padding=1), 0.2))
        return F.conv2d(torch.cat(seen, 1), part.out.weight, part.out.bias, padding=1)

    small = resized(x, size)
    low = y = resized(small, x.shape[-2:])
    z = x - low
    for b in network.blocks:
        y = y + dense(b.shift, z)
        z = z * torch.exp(2 / (1 + torch.exp(-dense(b.stretch, y))) - 1) + dense(b.add, y)
    y = resized(rounded(small + resized(y - low, size)), x.shape[-2:])
    z = torch.zeros_like(y)
    for b in reversed(network.blocks):
        z = (z - dense(b.add, y)) / torch.exp(2 / (1 + torch.exp(-dense(b.stretch, y))) - 1)
        y = y - dense(b.shift, z)
    return y + z


@pytest.mark.parametrize("size", [(3, 4), (7, 2)])
def test_the_cycle_equals_the_equations(size):
    network = moved(IARN(dim=4, depth=2, layers=1).double(), by=0.1)
    x, y = (torch.rand(1, 3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    x.requires_grad_()
    y.requires_grad_()
    ours, theirs = network(x, size), reference(network, y, size)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), at)[0] for out, at in ((ours, x), (theirs, y)))
    )


def test_it_starts_as_bicubic():
    network, x = IARN(dim=4, depth=2, layers=1), torch.rand(1, 3, 13, 10)
    torch.testing.assert_close(network.down(x, (5, 8)), rounded(resized(x, (5, 8))))
    torch.testing.assert_close(network(x), resized(rounded(resized(x, (7, 5))), (13, 10)))


def test_the_dropped_part_is_told():
    network, x = moved(IARN(dim=4, depth=1, layers=1)), torch.rand(1, 3, 6, 7)
    small, dropped = network.hidden(x, (3, 3))
    assert torch.equal(small, network.down(x, (3, 3)))
    _, low, rest = split(x, (3, 3))
    torch.testing.assert_close(dropped, network.mixed(low, rest, (3, 3))[1])


def test_the_loss_by_hand():
    x = torch.full((1, 3, 4, 4), 0.5)
    loss = invertible_loss(x, torch.full((1, 3, 2, 2), 0.7), torch.full((2,), 3.0), x - 0.1, guide=2, drop=0.5)
    assert loss.item() == pytest.approx(0.1 + 2 * 0.04 + 0.5 * 9)


def test_wrong_directions_are_refused():
    network, x = IARN(dim=4, depth=1, layers=1), torch.rand(1, 3, 5, 6)
    with pytest.raises(ValueError, match=r"sides must be from 1 to \(5, 6\), got \(5, 7\); `up` makes pictures larger"):
        network.down(x, (5, 7))
    with pytest.raises(ValueError, match=r"sides must be at least \(5, 6\), got \(4, 8\); `down` makes pictures sma"):
        network.up(x, (4, 8))
