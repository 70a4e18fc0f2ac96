import pytest
import torch

from foveal.evidence.generate.finc_flow import one_by_one
from foveal.generate.finc_flow import FInCUnit, finc_flow, finc_inverse, finc_step, turned
from foveal.generate.glow import Flow
from foveal.ops.inverse_conv import inverse_conv


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_turning_twice_changes_nothing():
    x = normal(2, 8, 3, 4)
    assert torch.equal(turned(turned(x)), x)
    assert torch.equal(turned(x)[:, :2], x[:, :2])
    assert torch.equal(turned(x)[:, 6:], x[:, 6:].flip(2, 3))


def test_a_unit_inverts_and_has_determinant_1():
    torch.manual_seed(0)
    unit, x = FInCUnit(8).double(), normal(1, 8, 3, 4)
    y, log_det = unit(x)
    assert log_det == 0
    torch.testing.assert_close(unit.inverse(y), x)
    matrix = torch.autograd.functional.jacobian(lambda v: unit(v.view(1, 8, 3, 4))[0].flatten(), x.flatten())
    assert matrix.det().item() == pytest.approx(1)


def test_the_quarters_see_the_four_corners():
    unit = FInCUnit(4)
    with torch.no_grad():
        unit.weight.fill_(1.0)
    x = torch.zeros(1, 4, 7, 7)
    x[..., 3, 3] = 1
    for quarter, (rows, columns) in zip(unit(x)[0][0], [(3, 3), (3, 1), (1, 3), (1, 1)], strict=True):
        assert quarter[rows : rows + 3, columns : columns + 3].sum() == quarter.sum() == 9


def test_backends_agree():
    y, weight = normal(2, 8, 4, 3), 0.3 * normal(8, 2, 3, 3)
    torch.testing.assert_close(finc_inverse(y, weight), finc_inverse(y, weight, backend="reference"))
    torch.testing.assert_close(one_by_one(y, weight), inverse_conv(y, weight, groups=4, backend="reference"))


def test_a_flow_trains_and_inverts():
    torch.manual_seed(0)
    flow, x = Flow(step=finc_step, levels=2, depth=1, width=4), normal(3, 1, 8, 4).float()
    latents, log_det = flow(x)
    loss = sum(z.square().sum() for z in latents) - log_det.sum()
    loss.backward()
    assert all(p.grad is not None for p in flow.parameters())
    torch.testing.assert_close(flow.eval().inverse(flow(x)[0]), x, rtol=0, atol=1e-4)


def test_the_authors_sizes():
    assert finc_flow.keywords == {"step": finc_step, "levels": 2, "depth": 16, "width": 512}


def test_channels_that_cannot_be_quartered():
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6; squeeze the picture first"):
        FInCUnit(6)
