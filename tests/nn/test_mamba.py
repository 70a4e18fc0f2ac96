import pytest
import torch
import torch.nn.functional as F

from foveal.nn.mamba import Mamba


def plain(mixer, x, z, back=False):
    """One direction, token by token and tap by tap."""
    conv1d, x_proj, dt_proj, decay, skip = mixer.parts(back=back)
    batch, inner, length = x.shape
    taps = conv1d.weight[:, 0]
    state, found = x.new_zeros(batch, inner, decay.shape[1]), []
    for t in range(length):
        seen = [x[..., t - k] if t >= k else torch.zeros_like(x[..., 0]) for k in range(taps.shape[1])]
        u = F.silu(sum(tap * value for tap, value in zip(taps.T.flip(0), seen, strict=True)) + conv1d.bias)
        step, into, out = x_proj(u).split(mixer.split, -1)
        delta = F.softplus(dt_proj(step))[..., None]
        state = torch.exp(-delta * decay.exp()) * state + delta * u[..., None] * into[:, None]
        found.append(((state * out[:, None]).sum(-1) + skip * u) * F.silu(z[..., t]))
    return torch.stack(found, -1)


@pytest.mark.parametrize("length", [1, 3, 11])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_it_is_the_recurrence(length, bidirectional):
    torch.manual_seed(0)
    mixer = Mamba(6, state=3, kernel_size=4, bidirectional=bidirectional).double()
    tokens = torch.randn(2, length, 6, dtype=torch.float64)
    x, z = mixer.in_proj(tokens).transpose(1, 2).chunk(2, 1)
    y = plain(mixer, x, z)
    if bidirectional:
        y = (y + plain(mixer, x.flip(-1), z.flip(-1), back=True).flip(-1)) / 2
    torch.testing.assert_close(mixer(tokens), mixer.out_proj(y.transpose(1, 2)), rtol=0, atol=1e-12)


def test_one_direction_does_not_look_ahead_and_two_do():
    torch.manual_seed(0)
    tokens = torch.randn(1, 9, 8)
    other = tokens.clone()
    other[:, 5:] += 1
    ahead, both = Mamba(8, state=2), Mamba(8, state=2, bidirectional=True)
    assert torch.equal(ahead(tokens)[:, :5], ahead(other)[:, :5])
    assert (both(tokens)[:, :5] - both(other)[:, :5]).abs().min() > 0


def test_same_weights_both_ways_see_a_mirrored_sequence_mirrored():
    torch.manual_seed(0)
    mixer = Mamba(8, state=2, bidirectional=True)
    state = mixer.state_dict()
    for there, back in (("conv1d.", "conv1d_b."), ("x_proj.", "x_proj_b."), ("dt_proj.", "dt_proj_b.")):
        state |= {name.replace(there, back): value for name, value in state.items() if name.startswith(there)}
    mixer.load_state_dict(state)
    tokens = torch.randn(2, 7, 8)
    torch.testing.assert_close(mixer(tokens.flip(1)), mixer(tokens).flip(1))


def test_parameters_are_named_as_in_mamba_ssm():
    names = {"in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"}
    names |= {"A_log", "D", "out_proj.weight"}
    assert set(Mamba(8).state_dict()) == names
    back = {
        "conv1d_b.weight",
        "conv1d_b.bias",
        "x_proj_b.weight",
        "dt_proj_b.weight",
        "dt_proj_b.bias",
        "A_b_log",
        "D_b",
    }
    assert set(Mamba(8, bidirectional=True).state_dict()) == names | back


def test_initial_steps_lie_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    mixer = Mamba(64, bidirectional=True)
    for projection in (mixer.dt_proj, mixer.dt_proj_b):
        step = F.softplus(projection.bias)
        assert 1e-3 * 0.999 <= step.min() < 2e-3
        assert 0.05 < step.max() <= 0.1 * 1.001
    assert torch.equal(mixer.A_log.exp().round(), torch.arange(1.0, 17).expand(128, 16))
