import pytest
import torch

from foveal.evidence.generate.inverse_flow import ForwardConv, dense, sweeps
from foveal.generate.glow import Flow
from foveal.generate.inverse_flow import CORNERS, InverseConv, inverse_step
from foveal.ops.inverse_conv import inverse_conv


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_gradients_are_those_of_the_dense_solve():
    found = []
    for solve in (inverse_conv, dense):
        y, weight = normal(2, 2, 3, 4).requires_grad_(), (0.3 * normal(2, 2, 2, 3)).requires_grad_()
        x = solve(y, weight)
        found.append((x, *torch.autograd.grad((x**3).sum(), (y, weight))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_sweeps_are_counted():
    assert sweeps(1) == (1, 1)
    assert sweeps(5) == (9, 9)


@pytest.mark.parametrize("corner", CORNERS)
def test_a_layer_inverts_with_determinant_1(corner):
    torch.manual_seed(0)
    layer, x = InverseConv(3, corner=corner).double(), normal(1, 3, 4, 3)
    with torch.no_grad():
        layer.weight.mul_(20)
    z, log_det = layer(x)
    assert log_det == 0
    torch.testing.assert_close(layer.inverse(z), x)
    matrix = torch.autograd.functional.jacobian(lambda v: layer(v.view(1, 3, 4, 3))[0].flatten(), x.flatten())
    assert matrix.det().item() == pytest.approx(1)


@pytest.mark.parametrize(("corner", "rows", "columns"), [("top left", 1, 1), ("bottom left", 0, 1)])
def test_sampling_looks_towards_the_corner(corner, rows, columns):
    layer = InverseConv(1, corner=corner, kernel_size=2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    z = torch.zeros(1, 1, 3, 3)
    z[0, 0, 1, 1] = 1
    x = layer.inverse(z)[0, 0]
    assert x.sum() == x[rows : rows + 2, columns : columns + 2].sum() == 4


def test_the_rival_is_the_layer_turned_round():
    torch.manual_seed(0)
    rival, x = ForwardConv(2).double(), normal(1, 2, 3, 3)
    torch.testing.assert_close(rival.inverse(rival(x)[0]), x)
    assert torch.equal(rival.inverse(x), InverseConv.forward(rival, x)[0])


def test_a_flow_trains_and_samples():
    torch.manual_seed(0)
    flow, x = Flow(step=inverse_step, levels=2, depth=1, width=4), normal(3, 1, 8, 4).float()
    latents, log_det = flow(x)
    (sum(z.square().sum() for z in latents) - log_det.sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())
    torch.testing.assert_close(flow.eval().inverse(flow(x)[0]), x, rtol=0, atol=1e-4)
    assert flow.sample(2, side=4).shape == (2, 1, 4, 4)


def test_an_unknown_corner():
    with pytest.raises(
        ValueError, match="corner must be one of top left, top right, bottom left, bottom right, got 'TL'"
    ):
        InverseConv(3, corner="TL")
