import pytest
import torch
import torch.nn.functional as F

from foveal.nn.ss2d import S6, SS2D, initial_step, one_route_each, one_route_each_back
from foveal.ops.scan2d import gather, routes, scatter
from foveal.ops.selective_scan.reference import selective_scan_reference

SIDES = [(1, 1), (1, 7), (5, 3), (4, 6)]


def test_first_steps_are_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    steps = F.softplus(initial_step(1000))
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 0.1001
    # evenly in the logarithm: the median is the geometric mean
    assert steps.median().item() == pytest.approx(1e-2, rel=0.2)


def test_a_shared_input_is_projected_as_one_repeated():
    torch.manual_seed(0)
    s6, x = S6(6, state=3, dt_rank=2, num_routes=4), torch.randn(2, 6, 10)
    shared, each = s6.project(x), s6.project(x[:, None].expand(-1, 4, -1, -1))
    assert [t.shape for t in shared] == [(2, 4, 6, 10), (2, 4, 3, 10), (2, 4, 3, 10)]
    for a, b in zip(shared, each, strict=True):
        torch.testing.assert_close(a, b)


def test_a_scan_looks_back_only():
    torch.manual_seed(0)
    s6, x = S6(4, state=2, num_routes=3), torch.randn(1, 3, 4, 9)
    changed = x.clone()
    changed[:, 1, :, 5] += 1
    difference = (s6(changed) - s6(x)).abs().sum((0, 2))
    assert difference[[0, 2]].max() == 0
    assert difference[1, :5].max() == 0
    assert difference[1, 5:].min() > 0


@pytest.mark.parametrize("order", ["cross", "snake", "diagonal"])
@pytest.mark.parametrize("side", SIDES)
def test_along_routes_is_gathering_scanning_and_adding_up(order, side):
    torch.manual_seed(0)
    s6, x = S6(4, state=3, dt_rank=2).double(), torch.randn(2, 4, *side, dtype=torch.float64)
    way = routes(order, *side)
    by_hand = scatter(s6(gather(x.flatten(2), way)), way, side[0] * side[1])
    torch.testing.assert_close(s6.along(x, order), by_hand.view(x.shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_ss2d_is_its_formula(gate, side):
    torch.manual_seed(0)
    mixer = SS2D(6, state=2, expand=1.5, gate=gate).double()
    torch.nn.init.normal_(mixer.s6.D)
    torch.nn.init.normal_(mixer.norm.weight)
    x = torch.randn(2, 6, *side, dtype=torch.float64)
    wide = F.conv2d(x, mixer.in_proj.weight)
    u = F.silu(F.conv2d(wide[:, :9], mixer.conv.weight, mixer.conv.bias, padding=1, groups=9)).flatten(2)
    total, s6 = torch.zeros_like(u), mixer.s6
    for k, way in enumerate(routes("cross", *side)):
        along, part = u[..., way], slice(9 * k, 9 * k + 9)
        step, weights_in, weights_out = (s6.x_proj[k] @ along).split((1, 2, 2), 1)
        y, _ = selective_scan_reference(
            along,
            s6.dt_proj[k] @ step,
            -s6.A_log[part].exp(),
            weights_in[:, None],
            weights_out[:, None],
            s6.D[part],
            None,
            s6.dt_bias[part],
            True,
        )
        total[..., way] += y
    y = F.layer_norm(total.mT, (9,), mixer.norm.weight, mixer.norm.bias).mT.unflatten(2, side)
    if gate:
        y = y * F.silu(wide[:, 9:])
    torch.testing.assert_close(mixer(x), F.conv2d(y, mixer.out_proj.weight), rtol=0, atol=1e-12)


def test_parts_can_be_left_out():
    def size(**kwargs):
        return sum(p.numel() for p in SS2D(8, state=2, **kwargs).parameters())

    full = size()
    assert full - size(gate=False) == 8 * 16
    assert full - size(conv_bias=False) == 16
    assert full - size(kernel_size=1) == 16 * 10
    # routes: (R + 2·D)·C to project, R·C steps, C biases, C·D decays, C skips
    assert full - size(order="raster", num_routes=2) == 2 * (5 * 16 + 16 + 16 + 32 + 16)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    mixer = SS2D(4, state=2)
    mixer(torch.randn(2, 4, 3, 5)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in mixer.parameters())


@pytest.mark.parametrize("side", SIDES)
def test_each_group_goes_along_its_own_cross_route(side):
    x = torch.randn(2, 12, *side)
    sequences = one_route_each(x)
    for k, way in enumerate(routes("cross", *side)):
        assert torch.equal(sequences[:, k], x[:, 3 * k : 3 * k + 3].flatten(2)[..., way])
    assert torch.equal(one_route_each_back(sequences, *side), x)
