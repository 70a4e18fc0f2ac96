import pytest
import torch
import torch.nn.functional as F

from foveal.nn.fused_states import FusedStates, hidden_states
from foveal.ops import selective_scan


@pytest.mark.parametrize("state", [1, 3])
@pytest.mark.parametrize("length", [1, 13])
def test_states_are_those_of_the_recurrence(state, length):
    torch.manual_seed(0)
    u, delta = torch.randn(2, 4, length), torch.randn(2, 4, length)
    decay, weights, bias = -torch.rand(4, state), torch.randn(2, state, length), torch.randn(4)
    h = torch.zeros(2, state, 4)
    ours = hidden_states(u, delta, decay, weights, delta_bias=bias)
    assert ours.shape == (2, state, 4, length)
    steps = F.softplus(delta + bias[:, None])
    for t in range(length):
        step = steps[:, None, :, t]
        h = (step * decay.t()).exp() * h + step * u[:, None, :, t] * weights[:, :, None, t]
        torch.testing.assert_close(ours[..., t], h, rtol=0, atol=1e-5)


def test_the_outputs_of_a_scan_follow_from_its_states():
    torch.manual_seed(0)
    u, delta = torch.randn(2, 3, 9), torch.rand(2, 3, 9)
    decay, weights_in, weights_out = -torch.rand(3, 2), torch.randn(2, 2, 9), torch.randn(2, 2, 9)
    states = hidden_states(u, delta, decay, weights_in, delta_softplus=False)
    theirs = selective_scan(u, delta, decay, weights_in, weights_out)
    torch.testing.assert_close((states * weights_out[:, :, None]).sum(1), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("state", [1, 2])
def test_states_that_are_passed_on_give_a_plain_scan(state):
    torch.manual_seed(0)
    module, x = FusedStates(5, state=state), torch.randn(2, 5, 3, 4)
    # one route: (B, 1, C, L)
    theirs = module.s6(x.flatten(2)[:, None])[:, 0].view(x.shape)
    torch.testing.assert_close(module(x, lambda h: h), theirs, rtol=0, atol=1e-6)
    assert (module(x, lambda h: 2 * h) - theirs).abs().max() > 0.001


def test_states_are_mixed_as_maps():
    seen = []
    FusedStates(5, state=2)(torch.randn(2, 5, 3, 4), lambda h: seen.append(h.shape) or h)
    assert seen == [(2, 10, 3, 4)]
