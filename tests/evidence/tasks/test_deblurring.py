import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.tasks import deblurring


@pytest.fixture(autouse=True)
def rehearsed():
    with rehearsal():
        yield


def network(in_channels):
    return nn.Conv2d(in_channels, in_channels, 3, padding=1)


def test_the_blur_keeps_flat_pictures_and_spreads_points():
    flat = torch.full((1, 1, 20, 20), 0.2)
    torch.testing.assert_close(deblurring.blurred(flat), torch.round(flat * 255) / 255)
    point = torch.zeros(1, 1, 25, 25)
    point[..., 12, 12] = 1
    spread = deblurring.blurred(point)[0, 0]
    assert spread.argmax() == 12 * 25 + 12
    assert torch.equal(spread, spread.mT)
    assert spread.max() == pytest.approx(1 / (2 * torch.pi * deblurring.SIGMA**2), abs=3e-3)


def test_batches_pair_the_sharp_picture_with_its_blur():
    low, sharp = deblurring.batches(0, patch=16, batch=2)(0)
    assert sharp.shape == (2, 1, 16, 16)
    assert torch.equal(low, deblurring.blurred(sharp))
    assert not torch.equal(low, sharp)
    assert torch.equal(deblurring.batches(0, patch=16, batch=2)(0)[1], sharp)
    assert not torch.equal(deblurring.batches(1, patch=16, batch=2)(0)[1], sharp)


class Sharp(nn.Module):
    def forward(self, x):
        return x + (x - deblurring.blurred(x))


def test_the_score_tells_better_from_worse():
    class Grey(nn.Module):
        def forward(self, x):
            return torch.full_like(x, 0.5)

    assert deblurring.gain(nn.Identity()) == 0
    assert deblurring.gain(Grey()) < -1
    assert deblurring.gain(Sharp()) > 0.5


def test_the_claim_turns_against_a_worse_network(monkeypatch):
    monkeypatch.setattr(deblurring, "trained", lambda build, **_: build(in_channels=1))
    verdicts = [
        run_one(deblurring.better(build, "Better.", than=than, steps=2, paper="")).verdict
        for build, than in [(lambda **_: Sharp(), lambda **_: nn.Identity()), (network, lambda **_: nn.Identity())]
    ]
    assert verdicts == ["holds", "does not hold"]


def test_training_depends_on_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (deblurring.trained(network, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.random.get_rng_state(), state)
