import pytest
import torch
import torch.nn.functional as F

from foveal.nn.snake import SnakeScan, moves
from foveal.ops.scan2d import routes


def plain(scan, u, ordered=True):
    """Place by place; not `ordered` takes delta, B and C of the place with the step's number, as the released code."""
    flat, length = u.flatten(2), u.shape[2] * u.shape[3]
    step, into, out = scan.x_proj(flat.transpose(1, 2)).split(scan.split, -1)
    delta = F.softplus(scan.dt_proj(step) + (0 if ordered else scan.dt_proj.bias))
    found = torch.zeros_like(flat)
    for route in routes("snake", *u.shape[2:]).tolist():
        state, before = u.new_zeros(*flat.shape[:2], scan.A_log.shape[1]), None
        for i, place in enumerate(route):
            at = place if ordered else i
            way = {None: 0, 1: 1, -1: 2, -u.shape[3]: 3, u.shape[3]: 4}[None if before is None else place - before]
            now, x = delta[:, at, :, None], flat[..., place]
            weights = into[:, at] + scan.directions[way]
            state = torch.exp(-now * scan.A_log.exp()) * state + now * x[..., None] * weights[:, None]
            found[..., place] += (state * out[:, at, None]).sum(-1) + scan.D * x
            before = place
    assert length == len(route)
    return found.view(u.shape)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (4, 3), (1, 5), (2, 2)])
def test_it_is_the_recurrence(released, size):
    torch.manual_seed(0)
    scan = SnakeScan(4, state=3, dt_rank=2, released=released).double()
    u = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(scan(u), plain(scan, u, ordered=not released), rtol=0, atol=1e-12)


def test_gradients_reach_all():
    torch.manual_seed(0)
    scan = SnakeScan(4, state=3, dt_rank=2).double()
    u = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(u)
    inputs = [u, *scan.parameters()]
    ours = torch.autograd.grad((scan(u) * weights).sum(), inputs)
    theirs = torch.autograd.grad((plain(scan, u) * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert one.abs().max() > 0


def test_moves_of_a_map_by_hand():
    # rows: 0 1 2 / 5 4 3; columns: 0 3 / 4 1 / 2 5; both backward
    came = moves(routes("snake", 2, 3), 3)
    assert came.tolist() == [
        [0, 1, 1, 2, 2, 4],
        [0, 3, 1, 4, 1, 4],
        [2, 2, 3, 0, 1, 1],
        [3, 2, 3, 2, 4, 0],
    ]


def test_directions_matter():
    torch.manual_seed(0)
    scan = SnakeScan(4, state=3, dt_rank=2)
    u = torch.randn(1, 4, 4, 5)
    before = scan(u)
    torch.nn.init.zeros_(scan.directions)
    assert (scan(u) - before).abs().max() > 1e-4
