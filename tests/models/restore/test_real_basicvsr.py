import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.real_basicvsr import RealBasicVSR, charbonnier, cleaned, cleaning_loss, stochastic
from foveal.nn.motion import warped
from foveal.nn.propagation import film_flow


def small(**kwargs):
    torch.manual_seed(0)
    network = RealBasicVSR(**{"scale": 2, "dim": 4, "depth": 1, "cleaning": 1, **kwargs})
    for name, parameter in network.named_parameters():  # at the start some are 0
        if name.startswith(("clean.1", "tail")):
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize(("threshold", "wanted"), [(0.3, 1), (0.15, 2), (0.1, 3), (0.01, 3)])
def test_cleaning_ends_where_little_changes(threshold, wanted):
    asked = []

    def residue(film):
        asked.append(film)
        return torch.full_like(film, -0.25 / len(asked))

    x = torch.ones(2, 3, 4, 5)
    out = cleaned(x, residue, threshold=threshold)
    assert len(asked) == wanted
    assert torch.allclose(out, x - 0.25 * sum(1 / (i + 1) for i in range(wanted)))


def test_training_cleans_once():
    network, x = small(threshold=0.0), torch.rand(1, 2, 3, 6, 7)
    once = x + network.clean(x[0])[None]
    assert torch.equal(network.train().cleaned(x), once)
    assert not torch.allclose(network.eval().cleaned(x), once)


def looped(network, film):
    """BasicVSR one frame after the other, backward and then forward."""
    count = film.shape[1]
    ahead, behind = film_flow(film, ahead=1), film_flow(film, ahead=-1)
    back, state = [None] * count, torch.zeros(1, network.dim, *film.shape[-2:])
    for t in reversed(range(count)):
        if t < count - 1:
            state = warped(state, ahead[:, t])
        state = back[t] = network.backward_cell(torch.cat([film[:, t], state], 1))
    state, out = torch.zeros_like(state), []
    for t in range(count):
        if t:
            state = warped(state, behind[:, t])
        state = network.forward_cell(torch.cat([film[:, t], back[t], state], 1))
        large = F.interpolate(film[:, t], scale_factor=network.scale, mode="bilinear")
        out.append(large + network.tail(state))
    return torch.stack(out, 1)


@pytest.mark.parametrize(("count", "scale", "size"), [(1, 4, (5, 6)), (3, 2, (7, 9)), (4, 3, (4, 4))])
def test_the_recurrence_equals_loops(count, scale, size):
    network = small(scale=scale)
    film = torch.rand(1, count, 3, *size, generator=torch.Generator().manual_seed(1))
    ours, theirs = network.enlarged(film), looped(network, film)
    assert ours.shape == (1, count, 3, size[0] * scale, size[1] * scale)
    torch.testing.assert_close(ours, theirs)
    weight = torch.rand(ours.shape, generator=torch.Generator().manual_seed(2))
    used = [p for name, p in network.named_parameters() if not name.startswith("clean")]
    ours, theirs = (torch.autograd.grad((out * weight).sum(), used) for out in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_every_frame_sees_all():
    network = small().requires_grad_(requires_grad=False)
    film = torch.rand(1, 4, 3, 5, 6, requires_grad=True)
    network(film)[:, 1].sum().backward()
    assert (film.grad.abs().amax((0, 2, 3, 4)) > 0).all()


def test_without_cleaning_it_is_basicvsr():
    network, film = small(cleaning=0), torch.rand(1, 2, 3, 5, 6)
    assert network.clean is None
    assert network.cleaned(film) is film
    assert torch.equal(network(film), network.enlarged(film))


def test_it_starts_as_bilinear_interpolation():
    x = torch.rand(2, 3, 5, 6)
    network = RealBasicVSR(2, dim=4, depth=1, cleaning=1)
    torch.testing.assert_close(network(x), F.interpolate(x, scale_factor=2, mode="bilinear"))


def test_the_loss_is_of_both():
    wanted, clean = torch.rand(2, 3, 3, 8, 4), torch.rand(2, 3, 3, 4, 2)
    large = torch.rand_like(wanted)
    shrunk = (wanted[..., ::2, :] + wanted[..., 1::2, :]) / 2
    shrunk = (shrunk[..., ::2] + shrunk[..., 1::2]) / 2
    both = ((large - wanted).abs().mean() + (clean - shrunk).abs().mean()).item()
    assert cleaning_loss(large, clean, wanted).item() == pytest.approx(both, abs=2e-3)
    assert cleaning_loss(wanted, shrunk, wanted).item() == pytest.approx(2e-3, abs=1e-5)


def test_the_tip_of_the_error_is_round():
    out = torch.zeros(3, requires_grad=True)
    charbonnier(out, torch.tensor([0.0, 1.0, -1.0])).backward()
    torch.testing.assert_close(out.grad * 3, torch.tensor([0.0, -1.0, 1.0]))


def test_frames_that_were_read_are_used_in_a_row():
    read = torch.arange(3.0).view(1, 3, 1, 1, 1)
    assert stochastic(read, 2).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(stochastic(read, 1), read)


def test_no_repeats_are_refused():
    with pytest.raises(ValueError, match="used at least once, got repeats 0; take 1 for no repetition"):
        stochastic(torch.rand(1, 2, 3, 4, 4), 0)


def test_a_scale_that_shrinks_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        RealBasicVSR(0)
