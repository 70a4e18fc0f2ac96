import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.models.restore.rsinet import biharmonic, holed, similarity
from foveal.models.restore.rsinet import (
    Generator,
    PatchCritic,
    RSINet,
    SpectralSpatialAttention,
    edges,
    filled,
    low_pass,
    stage_loss,
)


def small(**kwargs):
    torch.manual_seed(0)
    network = RSINet(**{"dim": 2, "depth": 1, "kernel_size": 3, **kwargs})
    for stage in (network.edge, network.colour, network.texture):  # at the start they are 0
        torch.nn.init.normal_(stage.out.weight, std=0.2)
    return network


def damaged(height=12, width=16, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(batch, 3, height, width, generator=generator)
    mask = torch.zeros(batch, 1, height, width)
    mask[..., 3:9, 5:11] = 1
    return picture, torch.cat([picture * (1 - mask), mask], 1)


def test_what_is_known_is_kept():
    picture, x = damaged()
    out, mask = small()(x), x[:, 3:].expand(-1, 3, -1, -1).bool()
    assert torch.equal(out[~mask], picture[~mask])
    assert not torch.allclose(out[mask], picture[mask])


def test_what_is_lost_is_not_seen():
    picture, x = damaged()
    network = small()
    wanted = network(x)
    x[:, :3] = picture  # a mask says that it is lost, whatever stands there
    assert torch.equal(network(x), wanted)


def test_a_mask_of_nothing_changes_nothing():
    x = torch.cat([torch.rand(1, 3, 9, 10), torch.zeros(1, 1, 9, 10)], 1)
    assert torch.equal(small()(x), x[:, :3])


def test_it_starts_as_a_membrane():
    _, x = damaged()
    mask = x[:, 3:]
    wanted = x[:, :3] + mask * filled(x[:, :3], mask)
    torch.testing.assert_close(RSINet(dim=2, depth=1)(x), wanted)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (16, 12)])
def test_a_flat_picture_is_filled_flat(size):
    mask = (torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    mask[..., 0, 0] = 0
    flat = torch.full((2, 3, *size), 0.3)
    torch.testing.assert_close(filled(flat * (1 - mask), mask), flat)
    assert not filled(torch.zeros(1, 3, *size), torch.ones(1, 1, *size)).any()


def test_filling_keeps_what_is_known_and_takes_what_is_near():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:] = 1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:5, 1], mask[..., 3:5, 6] = 1, 1
    out = filled(x * (1 - mask), mask)
    assert torch.equal(out * (1 - mask), x * (1 - mask))
    assert out[0, 0, 3, 1] < 0.2
    assert out[0, 0, 3, 6] > 0.8


def test_a_membrane_continues_a_slope():
    slope = torch.linspace(0, 1, 12).expand(1, 1, 12, 12)
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 3:9, 4:8] = 1
    assert (filled(slope * (1 - mask), mask, sweeps=50) - slope).abs().max() < 1e-3


def test_edges_are_where_grey_changes():
    step = torch.full((1, 1, 5, 16), 0.2)
    step[..., 8:] = 0.7
    found = edges(step)[0, 0]
    assert torch.equal(found, found[:1].expand_as(found))
    assert found[0, 7:9].min() > 0.9
    assert found[0, :4].max() < 1e-6
    assert not edges(torch.full((1, 1, 3, 4), 0.5)).gt(1e-9).any()


def test_edges_of_the_rim_are_not_taken_for_edges():
    _, x = damaged(16, 20)
    x[:, :3] = 0.8 * (1 - x[:, 3:])
    network = small()
    with torch.no_grad():
        network.edge.out.weight.zero_()
        network.edge.out.bias.fill_(-20)
    assert network.stages(x)[0].max() < 0.01


def test_low_pass_is_a_gaussian_mean():
    x = torch.zeros(1, 2, 15, 13)
    x[0, 1, 7, 6] = 1
    place = torch.arange(-3, 4.0)
    row = torch.exp(-(place**2) / 2)
    row = row / row.sum()
    out = low_pass(x, 1.0)
    torch.testing.assert_close(out[0, 1, 4:11, 3:10], torch.outer(row, row))
    assert not out[0, 0].any()


def test_attention_equals_its_formula():
    torch.manual_seed(0)
    layer, x = SpectralSpatialAttention(3), torch.randn(2, 3, 7, 5)
    channel = torch.sigmoid(layer.mlp(x.mean((2, 3))) + layer.mlp(x.flatten(2).max(2)[0]))
    y = x * channel.view(2, 3, 1, 1)
    seen = torch.stack([y.max(1)[0], y.mean(1)], 1)
    maps = [torch.sigmoid(F.conv2d(seen, p.weight, p.bias, padding=p.weight.shape[-1] // 2)) for p in layer.places]
    torch.testing.assert_close(layer(x), y * torch.maximum(torch.maximum(maps[0], maps[1]), maps[2]))


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (9, 14)])
def test_any_size(size):
    assert Generator(4, 3, dim=2, depth=1)(torch.rand(1, 4, *size)).shape == (1, 3, *size)


def test_each_part_of_a_loss_trains_its_own_network():
    torch.manual_seed(0)
    critic, wanted, mask = PatchCritic(3, dim=2).eval(), torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    made = torch.rand(2, 3, 8, 8, requires_grad=True)
    loss = stage_loss(made, wanted, mask, critic, weight=0.3)
    own = (made - wanted).abs().mean() / 0.5 + 0.3 * F.softplus(-critic(made)).mean()
    told = F.softplus(critic(made.detach())).mean() + F.softplus(-critic(wanted)).mean()
    torch.testing.assert_close(loss, own + told)
    loss.backward()
    torch.testing.assert_close(made.grad, torch.autograd.grad(own, made)[0])
    for p, grad in zip(critic.parameters(), torch.autograd.grad(told, critic.parameters()), strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_each_stage_learns_from_its_own_loss():
    network, (picture, x) = small(), damaged()
    for place, stage in enumerate((network.edge, network.colour, network.texture)):
        network.zero_grad()
        (network.stages(x)[place] - network.wanted(picture)[place]).abs().sum().backward()
        for other in (network.edge, network.colour, network.texture):
            assert all((p.grad is not None) == (other is stage) for p in other.parameters())
        assert stage.head[0].weight.grad.any()


def test_what_is_wanted():
    picture = torch.rand(1, 3, 6, 7)
    edge, colour, whole = small(blur=1.5).wanted(picture)
    grey = (picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(edge, edges(grey))
    torch.testing.assert_close(colour, low_pass(picture, 1.5))
    assert whole is picture


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="fills holes at the same size, scale 1, got 2"):
        RSINet(2)


def test_a_hole_is_a_quarter():
    x = holed(torch.rand(3, 3, 32, 32), torch.Generator().manual_seed(0))
    assert (x[:, 3].mean((1, 2)) - 0.25).abs().max() < 0.02
    assert not (x[:, :3] * x[:, 3:]).any()


def test_biharmonic_filling_continues_a_plane():
    picture = torch.linspace(0.1, 0.9, 12).expand(1, 3, 12, 12).contiguous()
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 4:8, 5:8] = 1
    torch.testing.assert_close(biharmonic(torch.cat([picture * (1 - mask), mask], 1)), picture, atol=1e-4, rtol=0)


def test_similarity_is_one_for_the_same_and_less_for_a_flat_hole():
    picture, x = damaged(16, 16)
    mask = x[:, 3:]
    assert similarity(picture, picture, mask) == pytest.approx(1)
    assert similarity(x[:, :3] + 0.5 * mask, picture, mask) < 0.7
    outside = picture.clone()
    outside[..., -1, :] = 0
    assert similarity(outside, picture, mask) > 0.999
