import pytest
import torch

from foveal.nn.motion import warped
from foveal.nn.propagation import ResidualCell, film_flow, found_flow, he_, propagated


def scene(dx, dy, *, height=21, width=27):
    """A smooth pattern, seen by a camera that moved: what is at p is at p + (dx, dy) then."""
    y, x = torch.meshgrid(torch.arange(height) - float(dy), torch.arange(width) - float(dx), indexing="ij")
    return torch.stack([(0.5 + 0.2 * (0.7 * x + 0.3 * y).sin() + 0.2 * (0.9 * y - 0.4 * x).cos())])[None]


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, -1), (0.4, 0.3), (-1.6, 2.3), (3.3, 0.0)])
def test_a_shift_is_found(dx, dy):
    flow = found_flow(scene(0, 0), scene(dx, dy), reach=3)
    inside = (..., slice(5, -5), slice(5, -5))
    assert (flow - torch.tensor([dx, dy]).view(2, 1, 1))[inside].abs().mean() < 0.03
    assert (warped(scene(dx, dy), flow) - scene(0, 0))[inside].abs().mean() < 0.02


def test_whole_displacements_are_the_least_of_all():
    x, y = torch.rand(2, 2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    y = y.roll((1, -2), (2, 3)) * 0.1 + x.roll((-1, 2), (2, 3)) * 0.9
    assert torch.equal(found_flow(x, y, reach=2, steps=0)[..., 2:-2, 2:-2].unique(), torch.tensor([-1.0, 2.0]))


def test_where_nothing_shows_nothing_moves():
    flat = torch.full((1, 3, 7, 8), 0.5)
    assert not found_flow(flat, flat).any()


def test_two_things_move_on_their_own():
    one, two = scene(0, 0, height=24), scene(0, 0, height=24)
    two[..., :12, :], two[..., 12:, :] = scene(2, 0, height=24)[..., :12, :], scene(-1, 0, height=24)[..., 12:, :]
    across = found_flow(one, two)[0, 0, :, 5:-5]
    assert (across[3:8] - 2).abs().max() < 0.2
    assert (across[-8:-3] + 1).abs().max() < 0.2


def test_flows_of_a_film_are_those_of_its_pairs():
    film = torch.rand(2, 3, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    for ahead, others in ((1, (1, 2, 2)), (-1, (0, 0, 1)), (2, (2, 2, 2))):
        found = film_flow(film, ahead=ahead)
        for t, other in enumerate(others):
            torch.testing.assert_close(found[:, t], found_flow(film[:, t], film[:, other]))
    assert film_flow(film)[:, -1].abs().max() < 1e-6


def test_no_gradient_reaches_the_frames():
    x = torch.rand(1, 3, 6, 7, requires_grad=True)
    assert not found_flow(x, x.detach()).requires_grad


def test_states_follow_the_motion():
    film, flows = torch.rand(1, 3, 1, 5, 6), torch.zeros(1, 3, 2, 5, 6)
    flows[:, :, 0] = 1  # each frame's pixels stood one to the right before
    states = propagated(film, flows, lambda x: x[:, :1] + 0.5 * x[:, 1:], 1)
    first, second, third = film.unbind(1)
    moved = first[..., [1, 2, 3, 4, 5, 5]] * 0.5 + second
    torch.testing.assert_close(states[:, 1], moved)
    torch.testing.assert_close(states[:, 2], moved[..., [1, 2, 3, 4, 5, 5]] * 0.5 + third)
    assert torch.equal(states[:, 0], first)


def test_a_film_of_one_frame_has_no_past():
    torch.manual_seed(0)
    cell, x = ResidualCell(5, 2, 1), torch.rand(1, 1, 3, 4, 5)
    state = propagated(x, torch.full((1, 1, 2, 4, 5), 9.0), cell, 2)
    assert torch.equal(state[:, 0], cell(torch.cat([x[:, 0], torch.zeros(1, 2, 4, 5)], 1)))


def test_gradients_reach_all_frames_and_the_cell():
    torch.manual_seed(0)
    cell, x = ResidualCell(7, 4, 1), torch.rand(1, 3, 3, 4, 5, requires_grad=True)
    propagated(x, torch.rand(1, 3, 2, 4, 5), cell, 4)[:, -1].sum().backward()
    assert (x.grad.abs().amax((0, 2, 3, 4)) > 0).all()
    assert all(p.grad is not None and p.grad.any() for p in cell.parameters())


@pytest.mark.parametrize(("size", "window"), [((4, 6), 5), ((4, 5), 4)])
def test_what_has_no_flow_is_refused(size, window):
    with pytest.raises(ValueError, match=f"one shape with an odd window, got .*4, 5.* and window {window}"):
        found_flow(torch.rand(1, 3, 4, 5), torch.rand(1, 3, *size), window=window)


def test_maps_keep_their_scale():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)))
    he_(layers)
    assert not layers[0].bias.any()
    assert layers[1].weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)
    cell, x = ResidualCell(16, 16, 4), torch.randn(1, 16, 20, 20)
    assert 0.5 < cell(x).square().mean().sqrt() < 2
