import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.train.diffusion import (
    PREDICTED,
    Draw,
    cosine_schedule,
    ddim_step,
    ddpm_step,
    denoising_loss,
    estimates,
    linear_schedule,
    ordinary_pair,
    q_sample,
    sample,
    target,
    times,
)


def drawn(seed=0, shape=(3, 2, 5, 3)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


class Knows(nn.Module):
    """Predicts without error what there is in pictures noised from `clean`."""

    def __init__(self, clean, alpha_bar, predicted):
        super().__init__()
        self.clean, self.alpha_bar, self.predicted, self.asked = clean, alpha_bar, predicted, []

    def forward(self, noisy, t, condition):
        self.asked.append(int(t[0]))
        kept = self.alpha_bar.to(noisy)[t]
        noise = (noisy - kept.sqrt()[:, None, None, None] * self.clean) / (1 - kept).sqrt()[:, None, None, None]
        return target(self.clean, noise, kept, self.predicted)


def test_schedules_by_the_formula():
    linear = linear_schedule(3, first=0.1, last=0.3)
    torch.testing.assert_close(linear, torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]))
    cosine = cosine_schedule(4)
    start, *rest = (math.cos((i / 4 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(5))
    torch.testing.assert_close(cosine[:3], torch.tensor([x / start for x in rest[:3]]))
    assert float(cosine[3] / cosine[2]) == pytest.approx(0.001, rel=1e-4)
    for schedule in (linear, cosine, linear_schedule(), cosine_schedule()):
        assert schedule.dtype == torch.float32
        assert bool((schedule.diff() < 0).all())


@pytest.mark.parametrize("predicted", PREDICTED)
def test_estimates_undo_the_target(predicted):
    clean, noise = drawn()
    kept = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    noisy = q_sample(clean, noise, kept)
    for i, k in enumerate(kept):
        torch.testing.assert_close(noisy[i], k.sqrt() * clean[i] + (1 - k).sqrt() * noise[i])
    found = estimates(target(clean, noise, kept, predicted), noisy, kept, predicted)
    torch.testing.assert_close(found, (clean, noise))
    clipped, left = estimates(target(clean, noise, kept, predicted), noisy, kept, predicted, clip=0.5)
    torch.testing.assert_close(clipped, clean.clamp(-0.5, 0.5))
    torch.testing.assert_close(q_sample(clipped, left, kept), noisy)


def test_the_pair_is_noisy_picture_and_target():
    clean, noise = drawn()
    kept = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    noisy, wanted = ordinary_pair(nn.Identity(), Draw(clean, noise, torch.tensor([0, 1, 2]), kept, None, "v"))
    torch.testing.assert_close(noisy, q_sample(clean, noise, kept))
    torch.testing.assert_close(wanted[1], (noise[1] - clean[1]) / 2**0.5)


@pytest.mark.parametrize("predicted", PREDICTED)
def test_the_loss_is_0_for_who_knows_and_takes_a_hook(predicted):
    clean, noise = drawn()
    alpha_bar = cosine_schedule(10).double()
    network, t = Knows(clean, alpha_bar, predicted), torch.tensor([0, 4, 8])
    given = {"predicted": predicted, "t": t, "noise": noise}
    assert float(denoising_loss(network, clean, alpha_bar, **given)) == pytest.approx(0, abs=1e-6)

    def off(network, draw):
        noisy, wanted = ordinary_pair(network, draw)
        assert torch.equal(draw.kept, alpha_bar[t])
        return noisy, wanted + 2

    assert float(denoising_loss(network, clean, alpha_bar, **given, pair=off)) == pytest.approx(2)
    assert float(denoising_loss(network, clean, alpha_bar, **given, pair=off, norm=F.mse_loss)) == pytest.approx(4)


def test_the_loss_draws_by_the_seed():
    network = nn.Conv2d(3, 3, 1)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made = denoising_loss(lambda x, t, c: network(x), torch.zeros(4, 3, 2, 2), cosine_schedule(10))
        losses.append(float(made.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_times_from_the_noisiest_to_the_cleanest():
    assert times(100, 10) == [99, 88, 77, 66, 55, 44, 33, 22, 11, 0]
    assert times(4, 4) == [3, 2, 1, 0]
    assert times(100, 1) == [99]
    for steps in (0, 11):
        with pytest.raises(ValueError, match=f"steps must be in 1…10, the times of the schedule, got {steps}"):
            times(10, steps)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("predicted", PREDICTED)
def test_samplers_end_at_what_the_network_knows(sampler, predicted):
    clean, noise = drawn()
    clean, alpha_bar = clean.clamp(-0.9, 0.9), cosine_schedule(20).double()
    network = Knows(clean, alpha_bar, predicted)
    out = sample(network, noise, alpha_bar, steps=7, predicted=predicted, sampler=sampler)
    torch.testing.assert_close(out, clean, rtol=0, atol=1e-6)
    assert network.asked == times(20, 7)


def test_ddim_goes_the_straight_way():
    clean, noise = drawn()
    before, after = torch.tensor([0.1, 0.3, 0.5]).double(), torch.tensor([0.4, 0.8, 1.0]).double()
    noisy = q_sample(clean, noise, before)
    out = ddim_step(*estimates(noise, noisy, before), after)
    torch.testing.assert_close(out, q_sample(clean, noise, after))
    torch.testing.assert_close(out[2], clean[2])


def test_ddpm_draws_from_the_posterior():
    """Noising by another step what a step gave: mean and variance of x_t given x₀ must come out."""
    clean, _ = drawn(shape=(1, 1, 1, 1))
    before, after = torch.tensor([0.3]).double(), torch.tensor([0.7]).double()
    many = torch.randn(2, 200_000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = clean.expand(200_000, -1, -1, -1)
    out = ddpm_step(clean, q_sample(clean, many[0], before), many[1], before, after)
    assert float(out.mean()) == pytest.approx(float(after.sqrt() * clean[0]), abs=5e-3)
    assert float(out.var()) == pytest.approx(float(1 - after), abs=5e-3)
    last = ddpm_step(clean[:1], clean[:1], many[1, :1], before, torch.ones(1).double())
    torch.testing.assert_close(last, clean[:1])


def test_fresh_noise_is_ddpms_and_comes_from_the_generator():
    network, alpha_bar = Knows(torch.zeros(1, 1, 2, 2), cosine_schedule(10), "noise"), cosine_schedule(10)

    def off(noisy, t, condition):
        return 0.5 * network(noisy, t, condition)

    def made(sampler, seed):
        generator = torch.Generator().manual_seed(seed)
        return sample(off, torch.ones(1, 1, 2, 2), alpha_bar, steps=3, sampler=sampler, generator=generator)

    assert torch.equal(made("ddim", 0), made("ddim", 1))
    assert torch.equal(made("ddpm", 0), made("ddpm", 0))
    assert not torch.equal(made("ddpm", 0), made("ddpm", 1))


@pytest.mark.parametrize("predicted", PREDICTED)
def test_equals_diffusers(predicted):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    word = {"noise": "epsilon", "clean": "sample", "v": "v_prediction"}[predicted]
    settings = {"num_train_timesteps": 20, "prediction_type": word, "clip_sample": False}
    settings |= {"beta_schedule": "squaredcos_cap_v2"}
    clean, noise = (x.float() for x in drawn(shape=(1, 2, 5, 3)))
    alpha_bar, t = cosine_schedule(20), torch.tensor([12])
    ddpm = diffusers.DDPMScheduler(**settings)
    torch.testing.assert_close(ddpm.alphas_cumprod, alpha_bar)
    noisy = ddpm.add_noise(clean, noise, t)
    torch.testing.assert_close(q_sample(clean, noise, alpha_bar[t]), noisy)
    torch.testing.assert_close(ddpm.get_velocity(clean, noise, t), target(clean, noise, alpha_bar[t], "v"))
    out = 0.3 * noisy + 0.1
    kept, then = alpha_bar[t], alpha_bar[t - 1]
    found = estimates(out, noisy, kept, predicted)
    ddim = diffusers.DDIMScheduler(**settings, set_alpha_to_one=True)
    ddim.set_timesteps(20)
    torch.testing.assert_close(ddim_step(*found, then), ddim.step(out, 12, noisy).prev_sample, rtol=1e-4, atol=1e-5)
    theirs = ddpm.step(out, 12, noisy, generator=torch.Generator().manual_seed(3)).prev_sample
    fresh = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ddpm_step(found[0], noisy, fresh, kept, then), theirs, rtol=1e-4, atol=1e-5)


def test_wrong_words_are_refused():
    x, kept = torch.zeros(1, 1, 1, 1), torch.tensor([0.5])
    text = "predicted must be one of noise, clean, v, got 'epsilon'"
    for call in (
        lambda: target(x, x, kept, "epsilon"),
        lambda: estimates(x, x, kept, "epsilon"),
        lambda: denoising_loss(nn.Identity(), x, kept, predicted="epsilon"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(ValueError, match="sampler must be ddim or ddpm, got 'heun'"):
        sample(nn.Identity(), x, cosine_schedule(3), steps=1, sampler="heun")
