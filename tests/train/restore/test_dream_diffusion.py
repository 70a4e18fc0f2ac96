import math
import types

import pytest
import torch
from torch import nn

from foveal.train.diffusion import Draw, cosine_schedule, denoising_loss, ordinary_pair, q_sample
from foveal.train.restore.dream_diffusion import Dream, correct, strength


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.tensor(1.3)), []

    def forward(self, noisy, t, condition):
        self.asked.append((noisy.detach(), torch.is_grad_enabled()))
        return torch.tanh(self.weight * noisy + t[:, None, None, None] / 50)


def drawn():
    torch.manual_seed(0)
    t = torch.tensor([0, 30, 70, 99])
    return Draw(torch.randn(4, 3, 5, 7), torch.randn(4, 3, 5, 7), t, cosine_schedule(100)[t])


def test_strength_by_the_formula():
    kept = torch.tensor([0.75, 0.36])
    torch.testing.assert_close(strength(kept, 1.0), torch.tensor([0.5, 0.8]))
    torch.testing.assert_close(strength(kept, 3.0), torch.tensor([0.125, 0.512]))
    assert torch.equal(strength(kept, 0.0), torch.ones(2))
    assert torch.equal(strength(torch.tensor([1e-9, 0.5]), math.inf), torch.zeros(2))


def test_the_pair_moves_by_the_error():
    draw, network = drawn(), Network()
    noisy, noise = Dream(2.0)(network, draw)
    plain = q_sample(draw.clean, draw.noise, draw.kept)
    for i, kept in enumerate(draw.kept):
        error = draw.noise[i] - torch.tanh(1.3 * plain[i] + draw.t[i] / 50)
        torch.testing.assert_close(noise[i], draw.noise[i] + (1 - kept) * error)
        torch.testing.assert_close(noisy[i], plain[i] + (1 - kept) ** 1.5 * error)
    assert [enabled for _, enabled in network.asked] == [False]
    assert not noisy.requires_grad
    assert not noise.requires_grad


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_the_clean_picture_of_the_pair_stays(power):
    """x_t and ε move together, so x₀ of the pair is what it was."""
    draw = drawn()
    noisy, noise = Dream(power)(Network(), draw)
    torch.testing.assert_close(noisy, q_sample(draw.clean, noise, draw.kept))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_equals_diffusers(power):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers.training_utils import compute_dream_and_update_latents

    draw, network = drawn(), Network()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    noisy = scheduler.add_noise(draw.clean, draw.noise, draw.t)
    theirs = compute_dream_and_update_latents(
        lambda *given: types.SimpleNamespace(sample=network(*given)), scheduler, draw.t, draw.noise, noisy, draw.noise,
        None, power,
    )  # fmt: skip
    torch.testing.assert_close(Dream(power)(network, draw), theirs, rtol=0, atol=1e-6)


def test_without_strength_it_is_the_ordinary_pair():
    draw = drawn()
    for ours, theirs in zip(Dream(math.inf)(Network(), draw), ordinary_pair(nn.Identity(), draw), strict=True):
        assert torch.equal(ours, theirs)


def test_the_loss_asks_twice_and_learns_from_the_second():
    draw, network = drawn(), Network()
    loss = denoising_loss(network, draw.clean, cosine_schedule(100), t=draw.t, noise=draw.noise, pair=Dream())
    loss.backward()
    (first, silent), (second, learning) = network.asked
    assert (silent, learning) == (False, True)
    assert not torch.equal(first, second)
    assert network.weight.grad.isfinite()
    assert network.weight.grad != 0


def test_no_error_no_correction():
    noisy, noise = torch.randn(2, 1, 3, 4, 5)
    for ours, theirs in zip(correct(noisy, noise, noise, torch.tensor([0.4])), (noisy, noise), strict=True):
        assert torch.equal(ours, theirs)


def test_wrong_arguments_are_refused():
    for power in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"power must be at least 0, got {power}; 1 is the paper's"):
            Dream(power)
    draw = Draw(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([0.5]), None, "v")
    with pytest.raises(ValueError, match="corrects predictions of noise, got a network that predicts 'v'"):
        Dream()(nn.Identity(), draw)
