import pytest
import torch

from foveal.nn.nc_ssd import NCSSD


def mixer(**arguments):
    torch.manual_seed(0)
    return NCSSD(8, 2, state=3, **arguments).double()


def test_it_keeps_its_shape_and_starts_with_small_steps():
    m = mixer()
    assert m(torch.rand(2, 15, 8, dtype=torch.float64), 5, 3).shape == (2, 15, 8)
    steps = torch.nn.functional.softplus(m.dt_bias)
    assert ((steps > 0.00099) & (steps < 0.101)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_only_a_causal_one_does_not_see_what_comes_later(causal):
    m = mixer(causal=causal)
    x = torch.rand(1, 24, 8, dtype=torch.float64, requires_grad=True)
    # The fourth row of six and, through the convolution, the fifth.
    m(x, 6, 4)[0, 15].sum().backward()
    later = x.grad[0, 20:].abs().max()
    assert (later == 0) == causal


def test_without_order_rows_may_come_last_to_first():
    m = mixer()
    with torch.no_grad():
        # A convolution that is the same upside down, so that order could only come from the state space.
        m.conv.weight.copy_((m.conv.weight + m.conv.weight.flip(2)) / 2)
    x = torch.rand(2, 24, 8, dtype=torch.float64)
    turned = x.view(2, 6, 4, 8).flip(1).reshape(2, 24, 8)
    torch.testing.assert_close(m(turned, 6, 4), m(x, 6, 4).view(2, 6, 4, 8).flip(1).reshape(2, 24, 8))
    m.causal = True
    gap = m(turned, 6, 4) - m(x, 6, 4).view(2, 6, 4, 8).flip(1).reshape(2, 24, 8)
    assert gap.abs().max() > 1e-4
